"""Qwen2.5-VL: all but a few blocks of its tower attend within windows, over patches put in window order.

The whole windows of all images stand first, and so are a dense batch; narrower windows at the images' edges follow. The
blocks that attend over images get the patches in the images' order.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from lmms.train.families import vision
from lmms.train.families.family import Family, Images, Tower, TowerInputs
from lmms.train.families.text import language_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_DENSE_STEPS = 4
"""Parts of all windows: padded batches have a whole number of these parts as dense windows."""


def tower(hf_config: "PretrainedConfig") -> Tower:
    """What the tower's inputs depend on."""
    config = hf_config.vision_config
    return replace(windowed_tower(config), tokens_per_second=config.tokens_per_second)


def windowed_tower(config: Any) -> Tower:
    """The sizes and windows of a tower with this config."""
    return Tower(
        patch_size=config.patch_size,
        merge_size=config.spatial_merge_size,
        window_size=config.window_size,
        windowed=tuple(block for block in range(config.depth) if block not in config.fullatt_block_indexes),
    )


def tower_inputs(grid_thw: Tensor, tower: Tower) -> TowerInputs:
    """The inputs of every family, the order of the merged patches by window, and the windows.

    dense_windows of max_window_seqlen patches come first, then the windows of cu_window_seqlens, which counts from the
    end of the dense windows. image_rows int64 [patches]: where each patch of the images is in window order;
    window_rows is the way back.
    """
    window_index, cu_window_seqlens = get_vision_window_index(
        grid_thw, tower.merge_size, tower.window_size, tower.patch_size
    )
    squares = tower.merge_size**2
    side = tower.window_size // tower.patch_size // tower.merge_size
    lengths = cu_window_seqlens.diff() // squares
    order = torch.argsort((lengths < side**2).int(), stable=True)
    whole = int((lengths == side**2).sum())
    starts, lengths = cu_window_seqlens[order] // squares, lengths[order]
    # Each window's merged patches, window after window in the new order.
    steps = torch.arange(len(window_index)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    window_index = window_index[starts.repeat_interleave(lengths) + steps]
    inside = torch.arange(squares)
    return {
        **vision.tower_inputs(grid_thw, tower),
        "window_index": window_index,
        "cu_window_seqlens": F.pad((squares * lengths[whole:]).cumsum(0, dtype=torch.int32), (1, 0)),
        "max_window_seqlen": squares * side**2,
        "dense_windows": whole,
        "image_rows": (squares * window_index.argsort().unsqueeze(1) + inside).flatten(),
        "window_rows": (squares * window_index.unsqueeze(1) + inside).flatten(),
    }


def fixed_windows(inputs: TowerInputs, patches: int, tower: Tower, images: int) -> TowerInputs:
    """Fewer dense windows, so that their number takes few values; windows taken out stand before narrower windows."""
    whole, size, narrow = inputs["dense_windows"], inputs["max_window_seqlen"], inputs["cu_window_seqlens"]
    assert isinstance(whole, int)
    assert isinstance(size, int)
    assert isinstance(narrow, Tensor)
    step = max(patches // size // _DENSE_STEPS, 1)
    dense = whole // step * step
    taken_out = size * torch.arange(whole - dense + 1, dtype=torch.int32)
    boundaries = torch.cat([taken_out, narrow[1:] + taken_out[-1]])
    # Except for a corner of each image, a window is whole in one direction.
    most = patches // (tower.window_size // tower.patch_size * tower.merge_size) + images
    return {"dense_windows": dense, "cu_window_seqlens": vision.fill(boundaries, patches - dense * size, patches, most)}


def attend_by_image(hf: Any) -> None:
    """Let the blocks of the tower that attend over whole images see the patches in the images' order."""
    visual = hf.model.visual
    for number in visual.fullatt_block_indexes:
        block: nn.Module = visual.blocks[number]
        block.register_forward_pre_hook(_to_images, with_kwargs=True)
        block.register_forward_hook(_to_windows, with_kwargs=True)


def _to_images(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    hidden, rows = args[0], kwargs["image_rows"]
    changed = {
        "position_embeddings": tuple(part.index_select(0, rows) for part in kwargs["position_embeddings"]),
        "dense_windows": 0,
    }
    return (hidden.index_select(0, rows), *args[1:]), {**kwargs, **changed}


def _to_windows(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    return output.index_select(0, kwargs["window_rows"])


IMAGES = Images(tower=tower, inputs=tower_inputs, features=vision.features, fixed_inputs=fixed_windows)

FAMILY = Family(
    auto_class="AutoModelForImageTextToText",
    parts=(
        vision.tower_part("gate_proj|up_proj", "down_proj"),
        vision.merger_part("merger", norm="ln_q", first=r"mlp\.0", second=r"mlp\.2"),
        language_model(),
    ),
    positions=vision.positions,
    images=IMAGES,
    replacements=(vision.embed_by_product, attend_by_image),
    stacked=vision.STACKED,
)
