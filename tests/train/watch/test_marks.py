"""Where a step stands, and the ranges that a profiler sees of it."""

import torch
from torch.profiler import ProfilerActivity, profile

from lmms.train.watch.marks import Marks


def seen(act: list[str], ranges: bool) -> list[str]:
    """Names of the ranges that a profiler sees of these marks, by their beginning."""
    marks = Marks()
    marks.ranges = ranges
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for path in act:
            marks(path)
            torch.ones(1)
        marks("")
    found = [event for event in profiler.events() or [] if event.is_user_annotation]
    return [event.name for event in sorted(found, key=lambda event: event.time_range.start)]


def test_a_range_lasts_until_the_next_mark_beside_it() -> None:
    paths = ["pass 1/data", "pass 1/forward", "pass 1/forward/llm", "pass 2/data", "update"]
    assert seen(paths, ranges=True) == ["pass 1", "data", "forward", "llm", "pass 2", "data", "update"]


def test_without_a_window_there_are_no_ranges() -> None:
    assert seen(["pass 1/data", "update"], ranges=False) == []


def test_the_latest_mark_is_known_with_what_is_inside_it() -> None:
    marks = Marks()
    marks("pass 2/forward")
    marks.inside("vision")
    assert marks.path == "pass 2/forward/vision"
    marks.inside("llm")
    assert marks.path == "pass 2/forward/llm"
    marks("")
    assert marks.path == ""
