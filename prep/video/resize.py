"""A frame in another size, pixel by pixel as torch resizes one: what the video processors of transformers do.

They ask torch for bicubic interpolation with antialiasing of 8-bit pixels. torch does that in whole numbers: rows, then
columns, each with weights of 16 bits and a result of 8 bits. Pillow's weights have more bits, so that its pixels differ
by one here and there. Sums of whole numbers are exact in floating point too, up to a size, whatever their order: the
sums here are products of matrices.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_REACH = 2.0
"""Pixels to each side that count for a new pixel where the picture does not shrink."""
_MOST_BITS = 22
_EXACT = 2**24
"""Whole numbers up to here are exact in 32 bits of floating point."""
_BLOCK = 8
"""Lines of the result that one product of matrices makes: few, since each needs a part of the source only."""
_MIDDLE = 128
"""Taken from each pixel before the product and given back behind it: so the sums stay small."""


def resized(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """frame: (height, width, 3) of any size -> (height, width, 3) of this size."""
    columns = _along_first(frame.transpose(1, 2, 0), width)
    return _along_first(columns.transpose(2, 0, 1), height)


def _along_first(lines: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """So many lines, each a weighted sum of lines of the source, in contiguous memory."""
    lines = np.ascontiguousarray(lines)
    if len(lines) == number:
        return lines
    starts, weights, bits = _weights(len(lines), number)
    source = lines.reshape(len(lines), -1)
    is_small = np.abs(weights).sum(1).max() * _MIDDLE < _EXACT
    number_type: type[np.float32 | np.float64] = np.float32 if is_small else np.float64
    rest = (weights.sum(1) * _MIDDLE + (1 << (bits - 1))).astype(np.int32)[:, None]
    result = np.empty((number, source.shape[1]), np.uint8)
    for first in range(0, number, _BLOCK):
        block = slice(first, first + _BLOCK)
        low, high = int(starts[block][0]), int(starts[block][-1]) + weights.shape[1]
        matrix = np.zeros((len(starts[block]), high - low), number_type)
        for row, start in enumerate(starts[block] - low):
            matrix[row, start : start + weights.shape[1]] = weights[first + row]
        pixels = np.subtract(source[low:high], _MIDDLE, dtype=number_type)
        sums = (matrix[:, : len(pixels)] @ pixels).astype(np.int32)
        sums += rest[block]
        sums >>= bits
        np.clip(sums, 0, 255, out=sums)
        result[block] = sums
    return result.reshape(number, *lines.shape[1:])


@lru_cache(64)
def _weights(before: int, after: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """(after,): first line of the source for each new line; (after, k): whole weights from there on; their bits.

    A weight is its whole number divided by two to the power of these bits.
    """
    scale = before / after
    spread = max(scale, 1.0)
    centres = scale * (np.arange(after) + 0.5)
    starts = np.maximum(np.trunc(centres - _REACH * spread + 0.5), 0).astype(np.int64)
    ends = np.minimum(np.trunc(centres + _REACH * spread + 0.5), before).astype(np.int64)
    places = starts[:, None] + np.arange(int(np.ceil(_REACH * spread)) * 2 + 1)
    weights = np.where(places < ends[:, None], _cubic((places - centres[:, None] + 0.5) * (1.0 / spread)), 0.0)
    total = np.zeros(after)
    for column in weights.T:  # in this order, as rounding depends on it
        total += column
    weights /= total[:, None]
    largest = weights.max()
    bits = 0
    while bits < _MOST_BITS and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return starts, np.trunc(weights * (1 << bits) + np.where(weights < 0, -0.5, 0.5)).astype(np.int64), bits


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cubic curve of Keys with a = -1/2."""
    x = np.abs(distance)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
