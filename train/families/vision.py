"""What the Qwen vision families share: 3-D positions, what the tower needs besides pixels, and where its parts are.

Positions and the tower's inputs are made on the CPU while packs are loaded. transformers makes a tower's inputs on the
device when they are not given, in Python loops that synchronise. The same functions of transformers make them here, so
the numbers are the same.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from lmms.configs.contract.pack import Media, Row
from lmms.train.families.family import ModelPart, Tower, TowerInputs
from lmms.train.families.text import LANGUAGE_MODEL

STACKED: Mapping[str, int] = {"qkv": 3}
"""The projections of a vision tower's attention."""

_VISUAL = "model.visual"


def tower_part(*mlp: str) -> ModelPart:
    """A vision tower. mlp: patterns of the layers of a block's MLP, in their order."""
    return ModelPart(
        name="vision",
        modules=(_VISUAL,),
        feeds=f"{_VISUAL}.merger",
        blocks="blocks",
        attention="attn.proj",
        before=("embed",),
        stages=("norm1", r"qkv|attn\.[qkv]\b", r"attn\.proj", "norm2", *mlp),
    )


def merger_part(*modules: str, norm: str, first: str, second: str) -> ModelPart:
    """What joins squares of patches to tokens: these modules of the tower. Patterns: its norm and its two layers."""
    return ModelPart(
        name="aligner",
        modules=tuple(f"{_VISUAL}.{module}" for module in modules),
        feeds=LANGUAGE_MODEL,
        behind=(norm, first, second),
    )


def positions(cu_seqlens: npt.NDArray[np.int64], media: Sequence[Media], tower: Tower | None) -> npt.NDArray[np.int64]:
    """int64 [3, 1, T]: time, height and width of every token, from 0 in every conversation.

    Text moves all three on by 1 a token. The tokens of an image share one time and spread over height and width, and
    what follows goes on after the image's longer side (mRoPE, arXiv 2409.12191 section 2.1). Rows of a video that
    stand end to end share height and width, and their time goes on; rows with text between them are images. Sounds
    count as text.
    """
    merge_size = tower.merge_size if tower else 1
    starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    result = np.tile(np.arange(len(starts)) - starts, (3, 1))
    visible = [m for m in media if m.sound is None]
    segment_ends = cu_seqlens[np.searchsorted(cu_seqlens, [m.start for m in visible], side="right")]
    first, room, before = 0, 0, None
    for m, segment_end in zip(visible, segment_ends.tolist(), strict=True):
        t, h, w = m.grid_thw[0], m.grid_thw[1] // merge_size, m.grid_thw[2] // merge_size
        goes_on = m.row is not None and m.row.number > 0 and before is not None and before.end == m.start
        if not goes_on:
            first, room = result[0, m.start], 0
        result[:, m.start : m.end] = first + np.indices((t, h, w)).reshape(3, -1)
        time = _row_time(m.row, tower) if goes_on and m.row else 0
        result[0, m.start : m.end] += time
        # What follows goes on behind the longer side of the first row, and where time takes room behind the last row.
        needed = max(room, h, w, time + 1 if tower and tower.time_takes_room else 0)
        result[:, m.end : segment_end] += needed - room - (m.end - m.start)
        room, before = needed, m
    return result[:, np.newaxis]


def _row_time(row: Row, tower: Tower | None) -> int:
    """Position in time of a row, from 0. The models multiply in float32, in one of two orders."""
    if tower is None or tower.tokens_per_second is None:
        return row.number
    number, rate, step = map(np.float32, (row.number, tower.tokens_per_second, row.step))
    return int(number * step * rate if tower.time_takes_room else number * (rate * step))


def tower_inputs(grid_thw: Tensor, tower: Tower) -> TowerInputs:
    """Inputs of every family: each patch's row and column, and the image it attends to. grid_thw: int64 [images, 3]."""
    cu_seqlens = get_vision_cu_seqlens(grid_thw)
    return {
        "position_ids": get_vision_position_ids(grid_thw, tower.merge_size),
        "cu_seqlens": cu_seqlens,
        "max_seqlen": longest(cu_seqlens),
    }


def features(output: Any) -> list[Tensor]:
    """The tower's output for the rows of images: [image tokens, hidden]."""
    return [output.pooler_output]


def longest(cu_seqlens: Tensor) -> int:
    """The largest of the lengths that cu_seqlens [n + 1] adds up, as a Python number: a kernel's launch needs it."""
    return int(torch.diff(cu_seqlens).max())


def fill(cu_seqlens: Tensor, total: int, piece: int, count: int) -> Tensor:
    """int32 [count + 1]: these boundaries, then a boundary every `piece` up to `total`, then `total` repeated."""
    last = int(cu_seqlens[-1])
    added = last + piece * torch.arange(1, count + 2 - len(cu_seqlens))
    return torch.cat([cu_seqlens, added.clamp(max=total).to(torch.int32)])


def embed_by_product(hf: Any) -> None:
    """Let a model embed patches by a matrix product: cuDNN has been visible to take seconds for the convolution."""
    patch_embed = hf.get_submodule(f"{_VISUAL}.patch_embed")
    patch_embed.forward = partial(embed_patches, patch_embed.proj)


def embed_patches(projection: nn.Conv3d, patches: Tensor) -> Tensor:
    """[patches, channels * time * p * p] -> [patches, width], since the kernel of the convolution covers a patch."""
    weight = projection.weight
    return F.linear(patches.to(weight.dtype), weight.flatten(1), projection.bias)
