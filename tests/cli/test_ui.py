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


def test_a_line_of_progress_tells_the_time_left_by_the_rate_since_the_first_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter([0.0, 50.0, 60.0, 70.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    out = io.StringIO()
    with ui.progress(Console(file=out, width=80)) as show:
        for done in (0, 10, 20, 30):  # no process was ready before second 50
            show("reading", done, 100, f"{done} records")
    said = ["reading 10% 10 records", "reading 20% 20 records, about 1 min 20 s left"]
    assert out.getvalue().splitlines() == [*said, "reading 30% 30 records, about 1 min 10 s left"]


@pytest.mark.parametrize(("width", "has_bar"), [(80, False), (120, True)])
def test_the_words_of_progress_fit_a_terminal(width: int, has_bar: bool) -> None:
    out = io.StringIO()
    words = "12.0 k records, 5.8 M tokens, 758/s, 58 rejected"
    screen = Console(file=out, width=width, force_terminal=True, color_system=None)
    with ui.progress(screen) as show:
        show("reading", 50, 100, words)
        show("planning", 1, 1, "11,928 samples")
    line = [line for line in out.getvalue().splitlines() if "reading" in line][-1]
    assert words in line
    assert "left -:--:--" in line
    assert ("━" in line) == has_bar
