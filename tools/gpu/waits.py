"""Where a step waits for the GPU: torch says each call that does, with its line."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_AT_THE_END = ("train/step.py", "train/parallel/world.py")
"""A step's one sum over ranks is read there, after all passes."""


def waits_in(step: Callable[[], object]) -> dict[str, int]:
    """file:line -> how often a step waits there. Nothing on a CPU."""
    if not torch.cuda.is_available():
        step()
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return places_of(caught)


def places_of(caught: list[warnings.WarningMessage]) -> dict[str, int]:
    """The places of torch's warnings of synchronising calls."""
    calls = [one for one in caught if "synchroniz" in str(one.message)]
    return dict(Counter(f"{_short(one.filename)}:{one.lineno}" for one in calls))


def early_waits(places: Mapping[str, int]) -> dict[str, int]:
    """Those before the end of a step, where there should be none."""
    return {place: count for place, count in places.items() if not place.startswith(_AT_THE_END)}


def _short(filename: str) -> str:
    return "/".join(Path(filename).parts[-2:])
