"""Qwen2.5-VL: all but a few blocks of its tower attend within windows, over patches put in window order.

Whole windows stand first, of all images, and so are a dense batch; narrower ones at the images' edges follow. The
blocks that attend over images get the patches in the images' order.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from lmms.train.families import vision
from lmms.train.families.vision import Tower, TowerInputs


def tower_inputs(grid_thw: Tensor, tower: Tower) -> TowerInputs:
    """Those of every family, the order of the merged patches by window, and the windows.

    dense_windows of max_window_seqlen patches come first, then those of cu_window_seqlens, which counts from their end.
    image_rows int64 [patches]: where each patch of the images is in window order; window_rows is the way back.
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


def attend_by_image(visual: Any) -> None:
    """Let the blocks of a tower that attend over whole images see the patches in the images' order."""
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
