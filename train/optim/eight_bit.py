"""Averages in fewer bits than fp32, bf16 and blocks of 8-bit codes: rounding that loses nothing over steps.

With rounding to nearest, an average would ignore a change of less than half the distance between two values: with a
constant of 0.999 it would never fall. So values go up or down by a threshold that differs at each step, and over steps
their mean is kept. A random threshold (stochastic rounding) would have to be equal for any number of ranks.

A block lies within a row of its tensor. Sharding cuts between rows, so codes and scales are the same for any number of
ranks, and are saved and cut like any sharded tensor.
"""

from functools import cache, lru_cache
from math import prod
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T", int, Tensor)

BLOCK = 256
"""Values of a row that share a scale; all values of a row that is narrower."""

_GOLDEN = 40503
"""65536 divided by the golden ratio: its multiples fall evenly into every interval."""
_APART = 25033
"""Difference of the thresholds of two neighbours in a block: 65536 divided by the square of the golden ratio."""
_DECADES = 7
_LEAST = 2.0**-149
"""The least fp32 number above 0."""


def rounded(values: Tensor, step: int) -> Tensor:
    """fp32 -> bf16, each value to one of its two neighbours. Infinite only from 3.38e38 on."""
    bits = values.view(torch.int32) + threshold(step, 0)
    return bits.bitwise_and_(-65536).view(torch.float32).bfloat16()


def threshold(step: int, offset: T) -> T:
    """How many 65536ths of the way to the next magnitude are added before the rest is cut off, 0 to 65535.

    The threshold walks by the golden ratio, and each odd step mirrors the step before: a value that changes little in a
    step moves at extreme thresholds only, and so goes down as often as up in a short time. Bits in reversed order would
    spread as evenly, but put every second step into the same half, which is wrong where every second gradient is large.
    """
    walked = (step // 2 * _GOLDEN + offset) % 65536
    return 65535 - walked if step % 2 else walked


@cache
def code_book(signed: bool, device: torch.device) -> Tensor:
    """The values of the codes, fp32 [256], rising: 0, 1 and in each of seven decades below 1 half as many as above.

    The dynamic data type of 8-bit Optimizers via Block-wise Quantization (Dettmers et al. 2021, arXiv 2110.02861). With
    a sign there are 255 values, one less in the first decade, so that -1 has a code too: without it, a block's largest
    value would lose 0.7 % at each step where it is negative.
    """
    values = [1.0]
    for decade in range(_DECADES):
        number = 2 ** (_DECADES - 1 - decade) * (1 if signed else 2) - int(signed and decade == 0)
        values += [10.0**-decade * (0.1 + 0.9 * (i + 0.5) / number) for i in range(number)]
    below = [-value for value in values] if signed else []
    return torch.tensor(sorted([*below, 0.0, *values]), dtype=torch.float32, device=device)


@lru_cache(maxsize=4)
def _bounds(signed: bool, step: int, device: torch.device) -> Tensor:
    """The bounds from which on each value of a block gets the upper one of two codes, fp32 [BLOCK, codes - 1].

    If all values had the same threshold, an average of codes 10 % apart would be off by a third for 1,000 steps, in the
    whole model alike. Cached, since all parameters of a step have the same bounds.
    """
    book = code_book(signed, device)
    at = 1 - (threshold(step, torch.arange(BLOCK, device=device) * _APART).unsqueeze(1) + 0.5) / 65536
    bounds = torch.lerp(book[:-1], book[1:], torch.where(book[:-1] < 0, 1 - at, at))
    if not signed:
        bounds[:, 0] = _LEAST
    return bounds


def blocks_of_row(shape: torch.Size) -> int:
    """Blocks into which each row (an index of dimension 0) of a tensor is cut."""
    width = prod(shape[1:])
    return -(-width // min(BLOCK, width))


def quantize(values: Tensor, signed: bool, step: int) -> tuple[Tensor, Tensor]:
    """fp32 [rows, ...] -> codes uint8 of the same shape, and the largest magnitude of each block, fp32 [rows, blocks].

    Each value becomes one of its two neighbours among the values of its block. Without a sign, a value above 0 stays
    above 0, even where that makes it larger: a root of squares that became 0 would leave a step without a bound.
    """
    cut = _in_blocks(values)
    scales = cut.abs().amax(-1) if cut.numel() else cut.new_zeros(cut.shape[:2])
    # A smaller number has no inverse.
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, 0.0, scales)
    units = cut / torch.where(scales == 0, torch.inf, scales).unsqueeze(-1)
    bounds = _bounds(signed, step, values.device)[: cut.shape[2]]
    codes = torch.searchsorted(bounds, units.flatten(0, 1).T.contiguous(), out_int32=True, right=True)
    width = prod(values.shape[1:])
    return codes.to(torch.uint8).T.reshape(cut.shape).flatten(1)[:, :width].reshape(values.shape), scales


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """The values of which quantize made these codes and scales, fp32 in the shape of the codes."""
    units = code_book(signed, codes.device)[_in_blocks(codes).int()]
    width = prod(codes.shape[1:])
    return units.mul_(scales.unsqueeze(-1)).flatten(1)[:, :width].reshape(codes.shape)


def _in_blocks(tensor: Tensor) -> Tensor:
    """[rows, ...] -> [rows, blocks, values of a block], the last block filled up with 0."""
    rows, width = tensor.shape[0], prod(tensor.shape[1:])
    count, size = blocks_of_row(tensor.shape), min(BLOCK, width)
    return F.pad(tensor.reshape(rows, width), (0, count * size - width)).view(rows, count, size)
