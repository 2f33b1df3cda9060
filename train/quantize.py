"""Averages in fewer bits than fp32: rounding to bf16 that loses nothing over steps, and blocks of 8-bit codes.

A block lies within a row of its tensor. Sharding cuts between rows, so codes and scales are the same for any number of
ranks, and are saved and cut as any sharded tensor.
"""

from functools import cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Values of a row that share a scale; of a narrower row all of them."""

_GOLDEN = 40503
"""Of 65536 the share that is the golden ratio's: its multiples fall evenly into every interval."""
_DECADES = 7


def rounded(values: Tensor, step: int) -> Tensor:
    """fp32 -> bf16, up or down by a threshold that is another at each step: over steps the mean is kept.

    Rounding to nearest loses every change below half a bf16 step, 0.2 to 0.4 %: an average with a constant of 0.999
    would never fall. A random threshold (stochastic rounding) is as good, but would have to be equal for any number of
    ranks. Infinite only from 3.38e38 on.
    """
    bits = values.view(torch.int32) + step * _GOLDEN % 65536
    return bits.bitwise_and_(-65536).view(torch.float32).bfloat16()


@cache
def code_book(signed: bool, device: torch.device) -> Tensor:
    """The 256 values of the codes, fp32 [256], rising: 0, 1 and in each of seven decades below 1 half as many as above.

    The dynamic data type of 8-bit Optimizers via Block-wise Quantization (Dettmers et al. 2021, arXiv 2110.02861).
    """
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        number = 2 ** (_DECADES - 1 - decade) * (1 if signed else 2)
        middles = [10.0**-decade * (0.1 + 0.9 * (i + 0.5) / number) for i in range(number)]
        values += middles + ([-middle for middle in middles] if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def blocks_of_row(shape: torch.Size) -> int:
    """Into how many blocks each row (an index of dimension 0) of a tensor is cut."""
    width = prod(shape[1:])
    return -(-width // min(BLOCK, width))


def quantize(values: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """fp32 [rows, ...] -> codes uint8 of the same shape, and the largest magnitude of each block, fp32 [rows, blocks].

    Each value becomes the nearest of its block's. Values of no sign that are above 0 stay above 0.
    """
    book = code_book(signed, values.device)
    cut = _in_blocks(values)
    scales = cut.abs().amax(-1) if cut.numel() else cut.new_zeros(cut.shape[:2])
    # What is smaller has no inverse.
    scales = torch.where(scales < torch.finfo(torch.float32).tiny, 0.0, scales)
    units = cut / torch.where(scales == 0, torch.inf, scales).unsqueeze(-1)
    codes = torch.bucketize(units, (book[1:] + book[:-1]) / 2, out_int32=True)
    if not signed:
        codes = torch.where(units > 0, codes.clamp(min=1), codes)
    width = prod(values.shape[1:])
    return codes.to(torch.uint8).flatten(1)[:, :width].view(values.shape), scales


def dequantize(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """What quantize has made codes and scales of, fp32 in the shape of the codes."""
    units = code_book(signed, codes.device)[_in_blocks(codes).int()]
    width = prod(codes.shape[1:])
    return units.mul_(scales.unsqueeze(-1)).flatten(1)[:, :width].reshape(codes.shape)


def _in_blocks(tensor: Tensor) -> Tensor:
    """[rows, ...] -> [rows, blocks, values of a block], the last block filled up with 0."""
    rows, width = tensor.shape[0], prod(tensor.shape[1:])
    count, size = blocks_of_row(tensor.shape), min(BLOCK, width)
    return F.pad(tensor.reshape(rows, width), (0, count * size - width)).view(rows, count, size)
