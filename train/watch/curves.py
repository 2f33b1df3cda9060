"""Columns of a run as curves that can be drawn: smoothed, and in few points."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.train.watch.history import Column, History

_OF_UPDATES = re.compile(r"(loss|grad_norm)([_/].*)?|sets/.*/loss")
"""Keys of the values that an update is made from: a step that was skipped has no point in their curves."""


def curve(run: History, key: str) -> Column:
    """float64 [lines]: a column as it is drawn, NaN where the curve has no point."""
    return np.where(run.skipped, np.nan, run.column(key)) if _OF_UPDATES.fullmatch(key) else run.column(key)


def smoothed(values: Column, span: float) -> Column:
    """float64 [values]: exponential mean over about `span` values, unbiased at the start; NaN leaves the mean as it is.

    Source: the bias correction of Adam (arXiv 1412.6980).
    """
    keep = 1 - min(2 / (span + 1), 1.0)
    mean, weight, result = 0.0, 0.0, np.full(len(values), np.nan)
    for i, value in enumerate(values.tolist()):
        if np.isfinite(value):
            mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        if weight:
            result[i] = mean / weight
    return result


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Buckets:
    """A column in few enough points to draw: the mean, lowest and highest of runs of neighbours."""

    last: npt.NDArray[np.int64]
    """[points]: the index of the last line of each point."""
    mean: Column
    low: Column
    high: Column


def bucketed(values: Column, most: int) -> Buckets:
    """The finite values of a column in `most` points or fewer."""
    finite = np.flatnonzero(np.isfinite(values))
    count = min(len(finite), most)
    starts = np.arange(count) * len(finite) // max(count, 1)
    last = np.append(starts[1:], len(finite))[:count] - 1
    kept = values[finite]
    empty = np.empty(0)
    return Buckets(
        last=finite[last],
        mean=np.add.reduceat(kept, starts) / np.diff(starts, append=len(kept)) if count else empty,
        low=np.minimum.reduceat(kept, starts) if count else empty,
        high=np.maximum.reduceat(kept, starts) if count else empty,
    )


def breaks(run: History, key: str, points: Buckets) -> list[int]:
    """The points of a curve to which no line leads: at least half the steps since the point before were skipped."""
    if not _OF_UPDATES.fullmatch(key):
        return []
    skipped, taken = (np.cumsum(which)[points.last] for which in (run.skipped, np.isfinite(curve(run, key))))
    return [int(i) + 1 for i in np.flatnonzero(np.diff(skipped) >= np.diff(taken))]
