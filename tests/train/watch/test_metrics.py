"""metrics.jsonl holds every step once, and a part without gradient is named."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from lmms.configs.errors import TrainError
from lmms.train.watch.metrics import (
    METRICS_NAME,
    ZERO_STEPS,
    SetLog,
    alarmed_parts,
    append_metrics,
    count_zero_steps,
    metrics_lines,
    open_metrics,
    peak_memory,
)
from tests.kit.logs import step_log


def steps_in(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / METRICS_NAME).read_text().splitlines()]


def test_a_line_holds_every_field_of_its_step(tmp_path: Path) -> None:
    open_metrics(tmp_path, 0)
    append_metrics(tmp_path, step_log(1))
    (line,) = (tmp_path / METRICS_NAME).read_text().splitlines()
    norms = {"grad_norm_llm": 1.5, "grad_norm_vision": None, "grad_norm_aligner": 0.0}
    fields = asdict(step_log(1))
    del fields["grad_norms"]
    assert json.loads(line) == {**fields, **norms, "alarms": []}
    assert list(json.loads(line))[4:9] == ["grad_norm", *norms, "tokens"]


@pytest.mark.parametrize(("resumed", "kept"), [(0, []), (2, [1, 2]), (9, [1, 2, 3])])
def test_resuming_cuts_off_what_comes_after_the_checkpoint(tmp_path: Path, resumed: int, kept: list[int]) -> None:
    for step in (1, 2, 3):
        append_metrics(tmp_path, step_log(step))
    open_metrics(tmp_path, resumed)
    assert steps_in(tmp_path) == kept
    append_metrics(tmp_path, step_log(10))
    assert steps_in(tmp_path) == [*kept, 10]


def test_a_line_cut_off_by_a_kill_goes(tmp_path: Path) -> None:
    append_metrics(tmp_path, step_log(1))
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"step": 2, "lo')
    open_metrics(tmp_path, 5)
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("line", ["not json\n", '{"loss": 1}\n', "[1]\n"])
def test_a_damaged_line_is_refused_by_name(tmp_path: Path, line: str) -> None:
    (tmp_path / METRICS_NAME).write_text(line)
    with pytest.raises(TrainError, match=r"metrics\.jsonl is damaged"):
        open_metrics(tmp_path, 5)


def test_lines_are_read_up_to_the_line_that_is_being_written(tmp_path: Path) -> None:
    assert metrics_lines(tmp_path) == []
    for step in (1, 3):
        append_metrics(tmp_path, step_log(step))
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in metrics_lines(tmp_path)] == [1, 3]
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('ss": 1}\n{"step": 4}\n')
    with pytest.raises(TrainError, match=r"damaged in line 4 \(ValueError: step is 4, expected a number above 4\)"):
        metrics_lines(tmp_path)


def test_a_disk_that_is_full_is_named_in_a_short_sentence(tmp_path: Path) -> None:
    (tmp_path / METRICS_NAME).symlink_to("/dev/full")
    with pytest.raises(
        TrainError,
        match=rf"metrics\.jsonl cannot be written: the disk of {tmp_path} is full: .* are needed, .* are free",
    ):
        append_metrics(tmp_path, step_log(1))


def test_zero_steps_count_only_steps_that_reach_the_part() -> None:
    counts = count_zero_steps({}, {"llm": 1.0, "vision": 0.0}, {"llm": True, "vision": True})
    assert counts == {"llm": 0, "vision": 1}
    counts = count_zero_steps(counts, {"llm": 0.0, "vision": 0.0}, {"llm": True, "vision": False})
    assert counts == {"llm": 1, "vision": 1}
    assert count_zero_steps(counts, {"llm": 0.0, "vision": 0.5}, {"llm": True, "vision": True}) == {
        "llm": 2,
        "vision": 0,
    }


def test_the_alarm_comes_at_every_multiple_and_not_between() -> None:
    assert alarmed_parts({"vision": ZERO_STEPS - 1}, {"llm": 0, "vision": ZERO_STEPS}) == ("vision",)
    assert alarmed_parts({"vision": ZERO_STEPS}, {"vision": ZERO_STEPS + 1}) == ()
    assert alarmed_parts({"vision": ZERO_STEPS}, {"vision": ZERO_STEPS}) == ()
    assert alarmed_parts({"vision": 2 * ZERO_STEPS - 1}, {"vision": 2 * ZERO_STEPS}) == ("vision",)


def test_peak_memory_is_in_bytes() -> None:
    assert 2**26 < peak_memory(torch.device("cpu")) < 2**36


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    log = step_log(
        1, loss=float("nan"), grad_norm=float("inf"), sets={"a": SetLog(loss=float("nan"), share=1, epoch=0)}
    )
    append_metrics(tmp_path, log)
    text = (tmp_path / METRICS_NAME).read_text()
    line = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (line["loss"], line["grad_norm"], line["sets"]["a"]["loss"]) == (None, None, None)
