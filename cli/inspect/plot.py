"""Curves in a terminal: dots of braille, two across and four down in each cell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rich.text import Text

_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]], np.uint8)
"""The bit of each dot of a cell, by row and column."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_TAIL = 0.005
"""Share of the values at each end that may lie outside of the frame: one spike must not flatten a curve."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """Points of ascending x, in one style. A band covers the range between neighbours, a line joins them."""

    x: Floats
    y: Floats
    style: str
    band: bool = False


def plot(curves: Sequence[Curve], x_range: tuple[float, float], width: int, height: int) -> list[Text]:
    """`height` rows of `width` cells, later curves over earlier ones; the edges are at the values of `frame`."""
    low, high = frame(curves)
    cells = np.zeros((height, width), np.uint8)
    owner = np.full((height, width), -1)
    for number, curve in enumerate(curves):
        dots = _dots(curve, x_range, (low, high), 2 * width, 4 * height)
        drawn = (dots.reshape(height, 4, width, 2).transpose(0, 2, 1, 3) * _DOTS).sum(axis=(2, 3)).astype(np.uint8)
        cells = np.where(drawn > 0, drawn, cells)
        owner = np.where(drawn > 0, number, owner)
    rows = []
    for bits, owners in zip(cells.tolist(), owner.tolist(), strict=True):
        row = Text()
        for bit, number in zip(bits, owners, strict=True):
            row.append(chr(0x2800 + bit) if bit else " ", curves[number].style if number >= 0 else "")
        rows.append(row)
    return rows


def sparkline(values: Sequence[float]) -> str:
    """A bar for each value, the lowest of them at the bottom; a value that is not finite leaves a gap."""
    finite = [value for value in values if np.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] if np.isfinite(value) else " " for value in values)


def frame(curves: Sequence[Curve]) -> tuple[float, float]:
    """The lowest and the highest value that are shown of these curves, apart."""
    values = np.concatenate([curve.y for curve in curves])
    low, high = (float(np.quantile(values, share)) for share in (_TAIL, 1 - _TAIL))
    if high - low > 1e-9 * abs(high):
        return low, high
    margin = 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _dots(
    curve: Curve, x_range: tuple[float, float], y_range: tuple[float, float], width: int, height: int
) -> npt.NDArray[np.bool_]:
    """bool [height, width]: the dots of a curve, the highest row first."""
    (left, right), (low, high) = x_range, y_range
    at = left + (np.arange(width) + 0.5) / width * (right - left)
    half = (right - left) / width / 2
    inside = (at >= curve.x[0] - half) & (at <= curve.x[-1] + half)
    middle = np.interp(at, curve.x, curve.y)
    top, bottom = middle.copy(), middle.copy()
    if curve.band:
        columns = np.clip(((curve.x - left) / (right - left or 1) * width).astype(int), 0, width - 1)
        np.maximum.at(top, columns, curve.y)
        np.minimum.at(bottom, columns, curve.y)
    else:
        # Each column reaches halfway to its neighbours: a steep curve has no holes.
        before, after = np.append(middle[:1], middle[:-1]), np.append(middle[1:], middle[-1:])
        top, bottom = (
            edge(edge(middle, (middle + before) / 2), (middle + after) / 2) for edge in (np.maximum, np.minimum)
        )
    rows = np.arange(height)[:, None]
    upper, lower = (np.clip(np.round((high - y) / (high - low) * (height - 1)), 0, height - 1) for y in (top, bottom))
    dots: npt.NDArray[np.bool_] = (rows >= upper) & (rows <= lower) & inside
    # Every other dot: a band stands behind the lines.
    return dots & ((rows + np.arange(width)) % 2 == 0) if curve.band else dots
