"""Curves of braille dots: where they run, what they hide, and the frame they stand in."""

import numpy as np

from lmms.cli.inspect.plot import Curve, frame, plot, sparkline


def drawn(curves: list[Curve], x_range: tuple[float, float], width: int = 10, height: int = 4) -> list[str]:
    return [row.plain for row in plot(curves, x_range, width, height)]


def line(y: list[float], **more: object) -> Curve:
    return Curve(x=np.arange(len(y), dtype=float), y=np.array(y), style="cyan", **more)  # type: ignore[arg-type]


def test_a_rising_line_runs_from_the_lower_left_to_the_upper_right_without_a_hole() -> None:
    rows = drawn([line([0.0, 1.0])], (0, 1))
    assert rows[0].strip() == rows[0][-len(rows[0].strip()) :]
    assert rows[-1].startswith(rows[-1].strip())
    assert all(any(row[column] != " " for row in rows) for column in range(10))
    assert [len(row) for row in rows] == [10] * 4


def test_a_constant_is_a_line_in_the_middle_of_a_frame_with_a_height() -> None:
    curves = [line([2.0, 2.0, 2.0])]
    rows, (low, high) = plot(curves, (0, 2), 10, 4), frame(curves)
    assert low < 2.0 < high
    assert sum(bool(row.plain.strip()) for row in rows) == 1


def test_a_curve_ends_where_its_points_end() -> None:
    rows = drawn([line([1.0, 1.0, 1.0])], (0, 9), width=20)
    assert len("".join(rows).strip()) <= 6


def test_a_spike_leaves_the_frame_and_not_the_curve() -> None:
    values = np.linspace(1.0, 2.0, 1000)
    values[500] = 1e9
    _, high = frame([Curve(x=np.arange(1000.0), y=values, style="")])
    assert high < 3


def test_a_later_curve_stands_over_an_earlier_one_and_each_keeps_its_style() -> None:
    below = Curve(x=np.array([0.0, 1.0]), y=np.array([0.0, 1.0]), style="red")
    above = Curve(x=np.array([0.0, 1.0]), y=np.array([1.0, 0.0]), style="blue")
    rows = plot([below, above], (0, 1), 20, 6)
    styles = {str(span.style) for row in rows for span in row.spans}
    assert styles == {"red", "blue"}
    middle = [str(span.style) for row in rows for span in row.spans if span.start in (9, 10)]
    assert "blue" in middle


def test_a_band_covers_what_its_points_cover() -> None:
    band = Curve(x=np.repeat(np.arange(20.0), 2), y=np.tile([0.0, 1.0], 20), style="", band=True)
    rows = drawn([band], (0, 19))
    assert all(row.strip() for row in rows)
    assert all(row[5] != " " for row in rows)


def test_a_sparkline_has_a_bar_each_and_a_gap_for_what_is_not_finite() -> None:
    assert sparkline([1.0, 2.0, float("nan"), 3.0]) in ("▁▄ █", "▁▅ █")
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([]) == ""
