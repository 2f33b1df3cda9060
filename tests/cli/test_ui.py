"""Numbers and times as people read them."""

import io

import pytest
from rich.console import Console

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


def test_a_stage_that_waits_for_a_server_has_a_line_at_once_and_others_only_in_time() -> None:
    out = io.StringIO()
    with ui.progress(Console(file=out, width=80)) as show:
        show("copying", 0, 0, "0.0 MB")
        assert out.getvalue() == "copying 0.0 MB\n"
        show("copying", 5, 10, "5.0 MB")
        show("reading", 0, 9, "no records")
        assert out.getvalue() == "copying 0.0 MB\ncopying 50% 5.0 MB\n"
    assert out.getvalue() == "copying 0.0 MB\ncopying 50% 5.0 MB\nreading 0% no records\n"
