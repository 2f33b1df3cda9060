"""The matrix products of a training step: every linear layer of a model, with the rows that go through it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig

from lmms.configs.contract.pack import Pack
from lmms.train.model.build import blocks, build_model
from lmms.train.model.names import parameter_name, part_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """rows x inputs times inputs x outputs, forward; backward has two products of the same size."""

    rows: int
    inputs: int
    outputs: int
    again: bool
    """Whether recomputing all of a block runs it once more: torch's checkpoint stops where backward has all it needs,
    before the last product of the block, and the compiler drops that one as unused."""

    @property
    def flops(self) -> float:
        """Of one of the three."""
        return 2.0 * self.rows * self.inputs * self.outputs

    @property
    def shape(self) -> str:
        """Its key in JSON."""
        return f"{self.rows}x{self.inputs}x{self.outputs}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What goes through the layers in one forward pass."""

    tokens: int
    targets: int
    patches: int


def rows_of(pack: Pack) -> Rows:
    """Of a forward pass over one pack."""
    targets = int((pack.targets[:, 1] - pack.targets[:, 0]).sum())
    return Rows(tokens=len(pack.input_ids), targets=targets, patches=pack.patches)


def body_products(hf_config: PretrainedConfig, rows: Rows) -> Mapping[Product, int]:
    """Product -> how many layers have it, of all but the LM head."""
    return _products(hf_config, rows, head=False)


def head_product(hf_config: PretrainedConfig, rows: Rows) -> Product:
    """The LM head's, over target rows alone."""
    (product,) = _products(hf_config, rows, head=True)
    return product


def _products(hf_config: PretrainedConfig, rows: Rows, *, head: bool) -> Counter[Product]:
    model = build_model(hf_config, "none")
    merged = rows.patches // hf_config.vision_config.spatial_merge_size**2
    inner = [[one for one in block.modules() if isinstance(one, nn.Linear)] for block in blocks(model)]
    repeated = {layer for layers in inner for layer in layers[:-1]}
    found: Counter[Product] = Counter()
    for whole_name, layer in model.named_modules():
        name = parameter_name(whole_name)
        if not isinstance(layer, nn.Linear | nn.Conv3d) or name.endswith("lm_head") != head:
            continue
        part = part_of(model, name)
        through = rows.targets if head else {"llm": rows.tokens, "vision": rows.patches, "aligner": merged}[part]
        outputs = layer.weight.shape[0]
        if through:
            inputs = layer.weight.numel() // outputs
            found[Product(rows=through, inputs=inputs, outputs=outputs, again=layer in repeated)] += 1
    return found
