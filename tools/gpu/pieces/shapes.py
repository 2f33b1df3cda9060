"""The work of a model on a pack, as shapes: its matrix products and its attention layers."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from lmms.configs.contract.pack import Pack
from lmms.train.families import images_of
from lmms.train.model.build import blocks, build_model
from lmms.train.model.names import parameter_name, part_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Product:
    """rows x inputs times inputs x outputs, forward; backward has two products of the same size."""

    rows: int
    inputs: int
    outputs: int
    again: bool
    """Whether recomputing a whole block runs this product again. Not for the last product of a block: torch's
    checkpoint stops before it, and the compiler drops it as unused."""

    @property
    def flops(self) -> float:
        """Operations of one of the three products."""
        return 2.0 * self.rows * self.inputs * self.outputs

    @property
    def shape(self) -> str:
        """The name of this product in JSON."""
        return f"{self.rows}x{self.inputs}x{self.outputs}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows that go through the layers in one forward pass."""

    tokens: int
    targets: int
    patches: int


def rows_of(pack: Pack) -> Rows:
    """The rows of a forward pass over one pack."""
    targets = int((pack.targets[:, 1] - pack.targets[:, 0]).sum())
    return Rows(tokens=len(pack.input_ids), targets=targets, patches=pack.patches)


def body_products(hf_config: PretrainedConfig, rows: Rows) -> Mapping[Product, int]:
    """Product -> number of layers with it, without the LM head."""
    return _products(hf_config, rows, head=False)


def head_product(hf_config: PretrainedConfig, rows: Rows) -> Product:
    """The LM head's product, over target rows only."""
    (product,) = _products(hf_config, rows, head=True)
    return product


def _products(hf_config: PretrainedConfig, rows: Rows, *, head: bool) -> Counter[Product]:
    model = build_model(hf_config, "none")
    merged = rows.patches // hf_config.vision_config.spatial_merge_size**2
    linear = [[layer for layer in block.modules() if isinstance(layer, nn.Linear)] for block in blocks(model)]
    repeated = {layer for layers in linear for layer in layers[:-1]}
    products: Counter[Product] = Counter()
    for whole_name, layer in model.named_modules():
        name = parameter_name(whole_name)
        if not isinstance(layer, nn.Linear | nn.Conv3d) or name.endswith("lm_head") != head:
            continue
        through = {"llm": rows.tokens, "vision": rows.patches, "aligner": merged}[part_of(model, name)]
        through = rows.targets if head else through
        outputs = layer.weight.shape[0]
        if through:
            inputs = layer.weight.numel() // outputs
            products[Product(rows=through, inputs=inputs, outputs=outputs, again=layer in repeated)] += 1
    return products


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """One kind of attention layer, with the bounds of its documents."""

    name: str
    """language, images or windows."""
    heads: int
    key_heads: int
    width: int
    causal: bool
    cu_seqlens: Tensor
    """int32 bounds of the documents behind the dense windows."""
    dense_windows: int
    max_length: int
    count: int
    """Layers of this kind in the model."""

    @property
    def positions(self) -> int:
        """Rows of query, key and value."""
        return self.dense_windows * self.max_length + int(self.cu_seqlens[-1])

    @property
    def flops(self) -> float:
        """Operations of forward, half of them if causal; backward has twice as many."""
        squares = self.dense_windows * self.max_length**2 + int((self.cu_seqlens.diff().long() ** 2).sum())
        return 4.0 * self.heads * self.width * squares / (2 if self.causal else 1)


def attention_layers(hf_config: PretrainedConfig, pack: Pack) -> list[Layer]:
    """The kinds of attention layers of a model, with the lengths of this pack."""
    text = hf_config.get_text_config()
    language = Layer(
        name="language",
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        width=head_width(text),
        causal=True,
        cu_seqlens=torch.from_numpy(pack.cu_seqlens.copy()),
        dense_windows=0,
        max_length=int(pack.lengths.max()),
        count=text.num_hidden_layers,
    )
    return [language, *(_tower_layers(hf_config, pack) if pack.media else ())]


def head_width(text: PretrainedConfig) -> int:
    """Values of one attention head of a language model."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _tower_layers(hf_config: PretrainedConfig, pack: Pack) -> Iterator[Layer]:
    config, images = hf_config.vision_config, images_of(hf_config.model_type)
    tower = images.tower(hf_config)
    inputs = images.inputs(torch.tensor([m.grid_thw for m in pack.media]), tower)
    whole = config.depth - len(tower.windowed)
    kinds = [("images", "cu_seqlens", "max_seqlen", 0, whole)]
    if "dense_windows" in inputs:
        dense = inputs["dense_windows"]
        assert isinstance(dense, int)
        kinds.append(("windows", "cu_window_seqlens", "max_window_seqlen", dense, config.depth - whole))
    for name, bounds, longest, dense_windows, count in kinds:
        cu_seqlens, max_length = inputs[bounds], inputs[longest]
        assert isinstance(cu_seqlens, Tensor)
        assert isinstance(max_length, int)
        yield Layer(
            name=name,
            heads=config.num_heads,
            key_heads=config.num_heads,
            width=config.hidden_size // config.num_heads,
            causal=False,
            cu_seqlens=cu_seqlens,
            dense_windows=dense_windows,
            max_length=max_length,
            count=count,
        )
