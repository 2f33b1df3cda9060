"""What lmms train shows while it runs: the plain line and the live view, at fixed widths."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from lmms.cli.live import view as live
from lmms.cli.live.course import Course, Trend
from lmms.cli.live.panel import Panel, line
from lmms.train.watch.metrics import SetLog
from tests.kit.logs import step_log, write_metrics


def shown(course: Course, width: int) -> list[str]:
    """The lines of the panel on a terminal of this width."""
    out = Console(width=width, record=True, force_terminal=False)
    with out.capture() as captured:
        out.print(Panel(course))
    return [text.rstrip() for text in captured.get().splitlines()]


def course_of(steps: range) -> Course:
    course = Course()
    for step in steps:
        course.add(step_log(step, loss=3.0 / step, eval_loss=4.0 / step if step % 2 == 0 else None))
    return course


def test_a_plain_line_says_all_that_counts() -> None:
    text = line(step_log(2, loss=2.25, mfu=0.412, busy_mfu=0.42), "8:00 left")
    assert text.startswith("step 2/10  loss 2.2500  tokens/s 96.0 k (target 48.0 k, prompt 16.0 k, visual 32.0 k, ")
    for part in (
        "lr 1e-05",
        "gradient 2 (llm 1.5, aligner 0)",
        "padding 4,800)",
        "MFU 41.2% (42.0% busy)",
        "waiting 2.0% ",
        "memory 3.00 GB",
        "epoch 1.250 (20 packs)",
        "masked 1 ",
    ):
        assert part in text
    assert text.endswith("  8:00 left")
    assert "\n" not in text


def test_what_a_step_lacks_is_not_in_its_line() -> None:
    text = line(step_log(1, masked=0), "")
    for name in ("MFU", "evaluation", "sets", "masked", "vision", "skipped", "profiled"):
        assert name not in text


def test_a_skipped_step_says_so_in_its_line() -> None:
    text = line(step_log(1, loss=float("nan"), grad_norm=float("inf"), skipped=2), "")
    assert "loss nan" in text
    assert "skipped 2 (steps in a row that were not finite)" in text


def test_a_profiled_step_says_that_it_is_slower() -> None:
    assert "profiled yes (slower than other steps)" in line(step_log(1, profiled=True), "")


def test_sets_and_evaluations_are_in_the_line_where_there_are_any() -> None:
    sets = {"a": SetLog(loss=1.5, share=0.5, epoch=0.1), "s3://b": SetLog(loss=None, share=0.0, epoch=2.0)}
    text = line(step_log(1, sets=sets, eval_loss=1.25), "")
    assert "sets 2 (a 1.5000, s3://b -)" in text
    assert "evaluation 1.2500" in text


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_fits_its_terminal_and_shows_curves_and_facts(width: int) -> None:
    course = course_of(range(1, 6))
    course.add(step_log(6, loss=0.5, mfu=0.412, busy_mfu=0.42))
    lines = shown(course, width)
    assert all(len(text) <= width for text in lines)
    assert lines[0].startswith("step 6 of 10")
    assert lines[0].endswith("60%  4 min 0 s left")
    rows = {text.split("  ")[0]: text for text in lines if not text.startswith(" ")}
    assert rows["loss"].split()[1:] == ["0.5000", "█▄▂▂▁▁"]
    assert rows["tokens/s"].split()[1:3] == ["96.0", "k"]
    assert rows["evaluation"].split()[1:] == ["1.0000", "█▁"]
    assert rows["MFU"].split()[1:] == ["41.2%", "42.0%", "busy"]
    assert rows["gradient"].split()[1:] == ["2", "llm", "1.5,", "aligner", "0"]
    assert {"lr", "waiting", "memory", "epoch", "masked"} <= rows.keys()
    assert any(text.strip() == "target 48.0 k, prompt 16.0 k, visual 32.0 k, padding 4,800" for text in lines)


def test_the_newest_loss_of_each_source_stays_where_it_is() -> None:
    course = Course()
    course.add(step_log(1, loss_by_source={"b.jsonl": 2.0, "a.jsonl": 1.0}))
    course.add(step_log(2, loss_by_source={"a.jsonl": 0.5, "c.jsonl": float("nan")}))
    row = next(text for text in shown(course, 80) if text.startswith("sources"))
    assert row.split() == ["sources", "2", "b.jsonl", "2.0000,", "a.jsonl", "0.5000"]
    course.add(step_log(3, loss_by_source={f"{k:02}": 1.0 for k in range(40)}))
    text = " ".join(" ".join(shown(course, 60)).split())
    assert " sources 42 b.jsonl 2.0000, a.jsonl 0.5000, 00 1.0000, " in text
    assert text.endswith(" 03 1.0000, and 36 more in metrics.jsonl")


def test_without_sources_there_is_no_row_of_them() -> None:
    assert not any(text.startswith("sources") for text in shown(course_of(range(1, 3)), 80))


def test_a_resumed_run_shows_its_whole_course_and_counts_its_own_time(tmp_path: Path) -> None:
    logs = [step_log(step, loss=float(9 - step), eval_loss=2.0 if step == 3 else None) for step in range(1, 8)]
    write_metrics(tmp_path, logs)
    course = Course()
    course.go_on(tmp_path, 5)
    for step in (5, 6, 7):
        # The break before the resumption is no part of the time that a step takes.
        course.add(step_log(step, loss=float(9 - step), time=90_000.0 + 10 * step, resumed_from=4))
    lines = shown(course, 80)
    assert lines[0].endswith("70%  30 s left")
    assert next(text for text in lines if text.startswith("loss")).endswith("█▇▆▅▃▂▁")
    assert next(text for text in lines if text.startswith("evaluation")).split()[1] == "2.0000"


def test_on_a_terminal_the_view_stays_and_what_is_said_goes_above_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_metrics(tmp_path, [step_log(step, loss=9.0) for step in range(1, 5)])
    out = Console(width=90, force_terminal=True, file=io.StringIO(), color_system=None)
    monkeypatch.setattr(live.ui, "console", lambda: out)
    with live.view(tmp_path) as report:
        report("ALARM: [vision] is trained")
        report(step_log(5, loss=1.25, resumed_from=4))
        report(step_log(6, loss=1.0, resumed_from=4))
    assert isinstance(out.file, io.StringIO)
    # Without the moves of the cursor.
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", out.file.getvalue())
    assert "ALARM: [vision] is trained" in text
    last = text[text.rindex("step 6 of 10") :]
    # Four steps of the log before the resumption, then two.
    assert re.search(r"loss +1\.0000 +████▁▁ ", last)
    assert text.index("ALARM") < text.index("step 6 of 10")


def test_off_a_terminal_each_step_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with live.view(tmp_path) as report:
        report("started")
        report(step_log(5, loss=1.25))
    said, step = capsys.readouterr().out.splitlines()
    assert (said, step.split("  ")[:2]) == ("started", ["step 5/10", "loss 1.2500"])


def test_the_course_of_any_number_of_steps_keeps_its_form_in_little_room() -> None:
    trend = Trend()
    for value in range(100_000, 0, -1):
        trend.add(float(value))
    trend.add(None)
    trend.add(float("nan"))
    assert len(trend.means) <= 128
    assert sum(count for _, count in trend.means) == 100_000
    text = trend.drawn(32)
    assert (len(text), text[0], text[-1]) == (32, "█", "▁")
    assert [*text] == sorted(text, reverse=True)


def test_few_steps_have_a_bar_each_and_none_have_none() -> None:
    trend = Trend()
    assert trend.drawn(32) == ""
    for value in (1.0, 1.0, 3.0):
        trend.add(value)
    assert trend.drawn(32) == "▁▁█"


def test_a_log_that_cannot_be_read_leaves_the_view_without_the_course_before(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    course = Course()
    course.go_on(tmp_path, 5)
    course.add(step_log(5))
    assert course.last is not None
    assert next(text for text in shown(course, 80) if text.startswith("loss")).split()[1] == "2.5000"
