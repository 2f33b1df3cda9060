"""What a training step costs, in floating-point operations of the model itself: strict, so that MFU cannot flatter.

A multiply-add is two. Counted: the products of linear layers, forward and backward; the LM head on rows that are
targets alone; attention within each conversation, image or window by its real length, causal attention at half.
Not counted: lookups, norms, rotations, recomputation, the dummy image of a rank without images. A frozen part costs its
forward and what gradients must pass through it: before the first thing that is trained, none do. A layer with LoRA
costs that and its two products forward and twice backward.

Source: PaLM (arXiv 2204.02311) appendix B.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn
from transformers import PretrainedConfig

from lmms.configs.by_part import PARTS, Part
from lmms.configs.settings.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.settings.train import EVERYTHING, How
from lmms.train.data.costs import ModelCost
from lmms.train.model.build import build_model
from lmms.train.model.lora import lora_layers, trained_names
from lmms.train.model.names import own_parameters, parameter_name, part_of

_Layer = nn.Linear | nn.Conv3d
"""The convolution embeds patches, and is a product: its kernel covers one."""

_Place = tuple[int, int]
_STAGES = (
    *("input_layernorm|norm1", "[qkv]_proj|qkv", "[qk]_norm", r"o_proj|attn\.proj", "post_attention_layernorm|norm2"),
    *("gate_proj|up_proj|fc1", ""),
)
"""Patterns of what a block does one after the other; attention itself comes right before its output layer."""
_BEHIND = 10**9
_INPUT, _NEVER = (-1, 0), (_BEHIND, 3)
_OUTSIDE = (
    ("embed", _INPUT),
    (r"merger.*\b(mlp\.0|linear_fc1)", (0, 1)),
    (r"merger.*\b(mlp\.2|linear_fc2)", (0, 2)),
    ("merger", (0, 0)),
    ("lm_head", (_BEHIND, 1)),
    ("", (_BEHIND, 0)),
)
"""Patterns of what stands outside of blocks, the first match holds; what is left is the last norm."""


def model_cost(
    hf_config: PretrainedConfig,
    train: Mapping[str, How] = EVERYTHING,
    lora: LoraConfig = DEFAULT_LORA,
) -> ModelCost:
    """The cost of a model of which this is trained, from the layers that transformers builds (on the meta device)."""
    model = build_model(hf_config, "none")
    layers = {parameter_name(name): m for name, m in model.named_modules() if isinstance(m, _Layer)}
    trained, with_lora = trained_names(model, train, lora), set(lora_layers(model, train, lora))
    own = own_parameters(model)
    first = _first_trained(trained | {f"{name}.weight" for name in with_lora})
    linear: Counter[str] = Counter()
    for name, layer in layers.items():
        passes_back, weights = first[part_of(name)] < _place(name), layer.weight.numel()
        linear[_group(name)] += _linear(own[f"{name}.weight"] in trained, passes_back) * weights
        if name in with_lora:
            outputs, inputs = layer.weight.shape
            linear[_group(name)] += lora.rank * (_linear(True, passes_back) * inputs + _linear(True, True) * outputs)
    tower = getattr(hf_config, "vision_config", None)
    # What leaves an attention enters its output layer: as wide are its two products, which have no weights.
    language = _attentions(layers, "self_attn.o_proj", first["llm"])
    images = _attentions(layers, ".attn.proj", first["vision"])
    whole = getattr(tower, "fullatt_block_indexes", range(len(images)))
    over_images = sum(cost for block, cost in enumerate(images) if block in whole)
    return ModelCost(
        token=linear["llm"],
        target=linear["head"],
        squared_length=sum(language) / 2,
        patch=linear["pixels"] + linear["vision"] + linear["aligner"] / getattr(tower, "spatial_merge_size", 1) ** 2,
        squared_image=over_images,
        squared_window=sum(images) - over_images,
        window=getattr(tower, "window_size", 0) // tower.patch_size if tower else 0,
    )


def _group(layer: str) -> str:
    if layer.endswith("lm_head"):
        return "head"
    return "pixels" if layer.endswith("patch_embed.proj") else part_of(layer)


def _place(name: str) -> _Place:
    """Where a module or parameter stands in the forward pass of its part: (block, stage in the block)."""
    if in_block := re.search(r"(?:layers|blocks)\.(\d+)\.(.+)", name):
        return int(in_block[1]), next(i for i, pattern in enumerate(_STAGES) if re.search(pattern, in_block[2]))
    return next(place for pattern, place in _OUTSIDE if re.search(pattern, name))


def _first_trained(names: Collection[str]) -> dict[Part, _Place]:
    """Of each part the place from which on gradients pass through what comes later."""
    first = {part: min((_place(name) for name in names if part_of(name) == part), default=_NEVER) for part in PARTS}
    if first["vision"] != _NEVER:
        first["aligner"] = _INPUT
    if first["aligner"] != _NEVER:
        first["llm"] = _INPUT
    return first


def _attentions(layers: Mapping[str, _Layer], ending: str, first: _Place) -> list[int]:
    """Operations of each attention for a pair of positions; the layer behind it has a name that ends so."""
    costs = []
    for name, layer in layers.items():
        if name.endswith(ending):
            block, stage = _place(name)
            costs.append(_attention(first < (block, stage)) * layer.weight.shape[1])
    return costs


def _linear(trained: bool, passes_back: bool) -> int:
    """Operations for a weight and a row: forward, the weight's gradient, the input's gradient."""
    return 2 + 2 * trained + 2 * passes_back


def _attention(passes_back: bool) -> int:
    """Operations for a pair of positions and a feature: two products forward, two backward for each."""
    return 4 + 8 * passes_back
