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
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PretrainedConfig

from lmms.configs.by_part import PARTS, Part
from lmms.configs.contract import Pack
from lmms.configs.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.train import EVERYTHING, How
from lmms.train.lora import lora_layers, trained_names
from lmms.train.model import build_model, own_parameters, parameter_name, part_of
from lmms.train.stream import Sidecar

PEAK_FLOPS: Mapping[str, float] = {
    r"\bH[18]00 PCIe": 756e12,
    r"\bH[12]00 NVL": 835e12,
    r"\bG?H[128]00\b": 989e12,
    r"\bH20\b": 148e12,
    r"\bA[18]00\b": 312e12,
    r"\bL40S\b": 362e12,
    r"\bRTX 4090\b": 165e12,
    r"\bGB200\b": 2500e12,
    r"\bB200\b": 2250e12,
}
"""Pattern of a device's name -> dense bf16 operations a second by its data sheet; the first match holds."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """Operations of a training step, forward and backward, for one of each thing that packs hold."""

    token: float
    target: float
    """A row of the LM head."""
    squared_length: float
    """Causal attention: by the sum of squared lengths of conversations."""
    patch: float
    """The vision tower's linear layers, and a patch's share of the mergers."""
    squared_image: float
    """Attention over images: by the sum of squared patches of an image (of a frame, where it moves)."""
    squared_window: float
    """Attention within windows: by the sum of squared patches of a window."""
    window: int
    """Patches along a window's side; 0 without windows."""


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


def pack_flops(cost: ModelCost, pack: Pack) -> float:
    """Operations of a pack's share of a training step."""
    lengths = pack.lengths.astype(np.int64)
    grids = [m.grid_thw for m in pack.media]
    return float(
        cost.token * len(pack.input_ids)
        + cost.target * int(np.diff(pack.targets).sum())
        + cost.squared_length * int((lengths**2).sum())
        + cost.patch * pack.patches
        + cost.squared_image * pack.sum_squared_patches
        + cost.squared_window * sum(_squared_windows(grid, cost.window) for grid in grids)
    )


def table_costs(cost: ModelCost, sidecar: Sidecar) -> npt.NDArray[np.int64]:
    """int64 [2, packs]: operations in the language model and in the vision tower, from the sidecar alone.

    Those of pack_flops, but that windows at the edges of images are taken for whole ones. Integers, since the order of
    a run depends on them.
    """
    units = {field.name: np.int64(round(getattr(cost, field.name))) for field in fields(ModelCost)}
    patch = units["patch"] + units["squared_window"] * units["window"] ** 2
    costs = np.empty((2, len(sidecar)), np.int64)
    costs[0] = units["token"] * sidecar.tokens
    costs[0] += units["target"] * sidecar.target_tokens
    costs[0] += units["squared_length"] * sidecar.sum_squared_lengths
    costs[1] = patch * sidecar.patches
    costs[1] += units["squared_image"] * sidecar.sum_squared_patches
    return costs


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 operations a second of a device by its data sheet; None for one that is not in the table."""
    return next((peak for pattern, peak in PEAK_FLOPS.items() if re.search(pattern, device_name)), None)


def ranks_peak(device: torch.device, ranks: int) -> float | None:
    """peak_flops of so many devices like this one; None for a CPU."""
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return None if peak is None else ranks * peak


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


def _squared_windows(grid_thw: tuple[int, int, int], side: int) -> int:
    """Sum of squared patches over an image's windows; those at the right and lower edges are cut."""
    if not side:
        return 0
    t, *sides = grid_thw
    rows, columns = (length // side * side**2 + (length % side) ** 2 for length in sides)
    return t * rows * columns
