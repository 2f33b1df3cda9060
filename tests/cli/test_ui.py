"""Numbers and times as people read them."""

import pytest

from lmms.cli import ui


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (400, "6 min 40 s"), (4000, "1 h 6 min"), (400_000, "4 d 15 h")],
)
def test_a_duration_has_its_units(seconds: float, text: str) -> None:
    assert ui.duration(seconds) == text


def test_counts_are_short() -> None:
    assert [ui.count(number) for number in (999, 12_345, 12_345_678)] == ["999", "12.3 k", "12.3 M"]
    assert ui.count(12_345_678, digits=3) == "12.346 M"
