"""What the Qwen vision families share: 3-D positions, and what the tower needs beside pixels.

Both are made on the CPU while packs are loaded. transformers makes the tower's part on the device when it is not given,
in Python loops that synchronise; its own functions make it here, so the numbers are the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from lmms.configs.contract.pack import Media

TowerInputs = dict[str, Tensor | int]
"""Keyword arguments of a vision tower's forward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """What a tower's inputs depend on, beside the grids."""

    patch_size: int
    merge_size: int
    window_size: int = 0
    """Side of an attention window, in pixels (Qwen2.5-VL)."""
    position_side: int = 0
    """Side of the learned square of positions that is stretched over each image (Qwen3-VL)."""


def positions(cu_seqlens: npt.NDArray[np.int64], media: Sequence[Media], merge_size: int) -> npt.NDArray[np.int64]:
    """int64 [3, 1, T]: time, height and width of every token, from 0 in every conversation.

    Text moves all three on by 1 a token. The tokens of an image share one time and spread over height and width, and
    what follows goes on after the image's longer side (mRoPE, arXiv 2409.12191 section 2.1).
    """
    starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    result = np.tile(np.arange(len(starts)) - starts, (3, 1))
    segment_ends = cu_seqlens[np.searchsorted(cu_seqlens, [m.start for m in media], side="right")]
    for m, segment_end in zip(media, segment_ends.tolist(), strict=True):
        t, h, w = m.grid_thw[0], m.grid_thw[1] // merge_size, m.grid_thw[2] // merge_size
        first = result[0, m.start]
        result[:, m.start : m.end] = first + np.indices((t, h, w)).reshape(3, -1)
        result[:, m.end : segment_end] += max(h, w) - (m.end - m.start)
    return result[:, np.newaxis]


def tower_inputs(grid_thw: Tensor, tower: Tower) -> TowerInputs:
    """Of every family: each patch's row and column, and the image that it attends to. grid_thw is int64 [images, 3]."""
    cu_seqlens = get_vision_cu_seqlens(grid_thw)
    return {
        "position_ids": get_vision_position_ids(grid_thw, tower.merge_size),
        "cu_seqlens": cu_seqlens,
        "max_seqlen": longest(cu_seqlens),
    }


def longest(cu_seqlens: Tensor) -> int:
    """The largest of the lengths that cu_seqlens [n + 1] adds up, as a Python number: a kernel's launch needs it."""
    return int(torch.diff(cu_seqlens).max())
