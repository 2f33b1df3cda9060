"""How long something takes on a device."""

import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch

_WARM = 3


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of one call's seconds after a warm-up; on a GPU by its own events, so that launching costs nothing."""
    for _ in range(_WARM):
        run()
    synchronize(device)
    if device.type != "cuda":
        return median(_clocked(run) for _ in range(repeats))
    event: Any = torch.cuda.Event
    marks = [event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    synchronize(device)
    return median(float(before.elapsed_time(after)) for before, after in pairwise(marks)) / 1e3


def _clocked(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
