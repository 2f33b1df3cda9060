"""Qwen2.5-VL: all but a few blocks of its tower attend within windows, over patches put in window order."""

from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from lmms.train.families import vision
from lmms.train.families.vision import Tower, TowerInputs


def tower_inputs(grid_thw: Tensor, tower: Tower) -> TowerInputs:
    """Those of every family, the order of the merged patches by window, and the windows."""
    window_index, cu_window_seqlens = get_vision_window_index(
        grid_thw, tower.merge_size, tower.window_size, tower.patch_size
    )
    return {
        **vision.tower_inputs(grid_thw, tower),
        "window_index": window_index,
        "cu_window_seqlens": cu_window_seqlens,
        "max_window_seqlen": vision.longest(cu_window_seqlens),
    }
