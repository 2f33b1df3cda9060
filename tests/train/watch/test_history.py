"""A run read back from its metrics.jsonl: columns, sums, where two part, and files that cannot be read."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from lmms.configs.errors import TrainError
from lmms.train.watch.curves import breaks, bucketed, curve, smoothed
from lmms.train.watch.history import elapsed, read_history, total_tokens
from lmms.train.watch.metrics import METRICS_NAME, SetLog
from lmms.train.watch.summary import parting, summarize
from tests.kit.logs import step_log, write_metrics


def test_columns_hold_every_number_and_nan_where_a_line_has_none(tmp_path: Path) -> None:
    sets = {"a": SetLog(loss=1.5, share=0.25, epoch=0.1), "b": SetLog(loss=None, share=0.75, epoch=2.0)}
    write_metrics(tmp_path, [step_log(1), step_log(2, sets=sets, eval_loss=1.0), step_log(3, alarms=("vision",))])
    run = read_history(tmp_path)
    assert run.steps.tolist() == [1, 2, 3]
    assert run.column("loss").tolist() == [2.5, 2.5, 2.5]
    np.testing.assert_array_equal(run.column("eval_loss"), [np.nan, 1.0, np.nan])
    np.testing.assert_array_equal(run.column("sets/a/loss"), [np.nan, 1.5, np.nan])
    assert not run.has("sets/b/loss")
    assert not run.has("mfu")
    assert np.isnan(run.column("no such key")).all()
    assert run.alarms == ((3, "vision"),)


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path, [step_log(1)])
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_history(tmp_path).steps.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("not json", "JSONDecodeError"),
        ("[1]", "TypeError"),
        ('{"step": 4}', "KeyError: 'loss'"),
        ('{"step": 2}', "step is 2, expected a number above 3"),
        ('{"step": "4"}', "step is '4'"),
    ],
)
def test_a_damaged_line_is_named_with_its_number(line: str, what: str, tmp_path: Path) -> None:
    write_metrics(tmp_path, [step_log(1), step_log(3)])
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(TrainError, match=rf"metrics\.jsonl is damaged in line 3 \(.*{what}.*\); take the line out"):
        read_history(tmp_path)


@pytest.mark.parametrize("text", ["", '{"step": 1'])
def test_a_run_without_a_step_is_told_from_a_folder_that_is_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"cannot be read .*; expected the output folder of a run of `lmms train`"):
        read_history(tmp_path)
    (tmp_path / METRICS_NAME).write_text(text)
    with pytest.raises(TrainError, match=r"metrics\.jsonl has no step yet"):
        read_history(tmp_path)


def test_the_sum_of_a_run(tmp_path: Path) -> None:
    logs = [
        step_log(
            step,
            loss=[3.0, 1.0, 2.0, 2.5][step - 1],
            eval_loss=[None, 1.5, None, 1.75][step - 1],
            # An hour's break before the resumption, which is not counted; steps take 60 seconds on the clock.
            time=100.0 + 60 * step + (3600 if step > 2 else 0),
            resumed_from=2 if step > 2 else 0,
            mfu=0.4,
            busy_mfu=0.5,
            seconds=60.0,
            alarms=("vision",) if step == 3 else (),
        )
        for step in (1, 2, 3, 4)
    ]
    found = summarize(read_history(write_metrics(tmp_path, logs)))
    assert (found.step, found.steps, found.every_step) == (4, 10, True)
    assert (found.loss, found.best_loss, found.best_loss_step) == (2.5, 1.0, 2)
    assert (found.eval_loss, found.best_eval_loss, found.best_eval_step) == (1.75, 1.5, 2)
    assert found.tokens == 48_000
    assert (found.target_share, found.visual_share, found.padding_share) == (0.5, pytest.approx(1 / 3), 0.05)
    assert found.hours == pytest.approx(4 / 60)
    assert found.tokens_per_s == pytest.approx(48_000 / 240)
    assert (found.mfu, found.busy_mfu, found.data_wait) == pytest.approx((0.4, 0.5, 0.02))
    assert (found.resumes, found.alarms, found.masked, found.epoch) == (1, 1, 4, 1.25)


def test_shares_of_sets_are_means_over_the_steps(tmp_path: Path) -> None:
    shares = [(0.25, 0.75), (0.75, 0.25), (1.0, 0.0)]
    logs = [
        step_log(i, sets={n: SetLog(loss=1.0, share=s, epoch=0.0) for n, s in zip(("x/a", "b"), pair, strict=True)})
        for i, pair in enumerate(shares, 1)
    ]
    found = summarize(read_history(write_metrics(tmp_path, logs))).shares
    assert found == {"x/a": pytest.approx(2 / 3), "b": pytest.approx(1 / 3)}


def test_steps_that_were_not_logged_count_as_the_next_logged_one(tmp_path: Path) -> None:
    run = read_history(write_metrics(tmp_path, [step_log(10, tokens=100), step_log(20, tokens=200)]))
    assert total_tokens(run).tolist() == [1000, 3000]
    assert not summarize(run).every_step


def test_a_file_of_before_these_keys_is_read(tmp_path: Path) -> None:
    new = {"seconds", "resumed_from", "mfu", "busy_mfu", "visual_tokens", "padding_tokens", "steps"}
    write_metrics(tmp_path, [step_log(1), step_log(2)])
    lines = [json.loads(line) for line in (tmp_path / METRICS_NAME).read_text().splitlines()]
    old = [{key: value for key, value in line.items() if key not in new} for line in lines]
    (tmp_path / METRICS_NAME).write_text("".join(json.dumps(line) + "\n" for line in old))
    found = summarize(read_history(tmp_path))
    assert (found.steps, found.mfu, found.visual_share, found.resumes) == (None, None, None, None)
    assert found.hours == pytest.approx((60 + 0.125) / 3600)


def test_a_loss_that_is_not_finite_is_no_best_one(tmp_path: Path) -> None:
    logs = [step_log(1, loss=2.0), step_log(2, loss=float("-inf")), step_log(3, loss=float("nan"))]
    found = summarize(read_history(write_metrics(tmp_path, logs)))
    assert (found.best_loss, found.best_loss_step) == (2.0, 1)


def test_the_loss_of_a_skipped_step_is_no_best_one(tmp_path: Path) -> None:
    logs = [step_log(1, loss=2.0), step_log(2, loss=1.0, skipped=1), step_log(3, loss=3.0)]
    found = summarize(read_history(write_metrics(tmp_path, logs)))
    assert (found.best_loss, found.best_loss_step) == (2.0, 1)


def test_runs_that_skipped_the_same_step_do_not_part_there(tmp_path: Path) -> None:
    losses = [2.0, float("nan"), float("inf"), 1.0]
    logs = [step_log(i, loss=loss, skipped=int(i in (2, 3))) for i, loss in enumerate(losses, 1)]
    one, two = (read_history(write_metrics(tmp_path / name, logs)) for name in "ab")
    found = parting(one, two)
    assert (found.loss, found.most) == (None, 0.0)
    assert summarize(one).skipped == 2
    other = read_history(write_metrics(tmp_path / "c", [logs[0], step_log(2, loss=1.5), *logs[2:]]))
    assert (parting(one, other).loss, parting(one, other).most) == (2, 0.0)


def test_where_two_runs_part(tmp_path: Path) -> None:
    one = [step_log(step, loss=2.0, digest=f"{step:016x}") for step in range(1, 7)]
    two = [
        step_log(step, loss=2.0 if step < 3 else 2.0 + 0.001 * step, digest=f"{step if step < 5 else 99:016x}")
        for step in range(2, 9)
    ]
    (write_metrics(tmp_path / "a", one) / "config.yaml").write_text("optim:\n  lr: {default: 1e-5}\nseed: 0\n")
    (write_metrics(tmp_path / "b", two) / "config.yaml").write_text("optim:\n  lr: {default: 2e-5}\nseed: 0\n")
    found = parting(read_history(tmp_path / "a"), read_history(tmp_path / "b"))
    assert (found.common, found.packs, found.loss) == (5, 5, 3)
    assert found.most == pytest.approx(0.004 / 2.004)
    assert found.settings == {"optim.lr.default": (1e-5, 2e-5)}


def test_equal_runs_do_not_part(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_metrics(tmp_path / name, [step_log(step) for step in (1, 2)])
    found = parting(read_history(tmp_path / "a"), read_history(tmp_path / "b"))
    assert (found.common, found.packs, found.loss, found.most, found.settings) == (2, None, None, 0.0, {})


def test_a_break_between_stop_and_resumption_takes_no_time(tmp_path: Path) -> None:
    logs = [
        step_log(1, time=100.0, seconds=10.0),
        step_log(2, time=120.0, seconds=10.0),
        step_log(3, time=9_000.0, seconds=10.0, resumed_from=2),
        step_log(4, time=9_015.0, seconds=10.0, resumed_from=2),
    ]
    hours = elapsed(read_history(write_metrics(tmp_path, logs)))
    assert (3600 * hours).tolist() == pytest.approx([10, 30, 40, 55])


def test_smoothing_keeps_a_constant_and_follows_a_step_by_its_span() -> None:
    assert smoothed(np.full(5, 3.0), 4).tolist() == pytest.approx([3.0] * 5)
    assert smoothed(np.array([1.0, 2.0, 5.0]), 1).tolist() == [1.0, 2.0, 5.0]
    values = np.concatenate([np.zeros(100), np.ones(100)])
    # By definition a span of n weighs the last value with 2 / (n + 1).
    assert smoothed(values, 9)[100] == pytest.approx(0.2)
    assert smoothed(values, 9)[-1] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(smoothed(np.array([np.nan, 1.0, np.nan]), 3), [np.nan, 1.0, 1.0])


def test_buckets_hold_every_value_once_and_keep_its_spikes() -> None:
    values = np.arange(1000.0)
    values[500] = 1e6
    values[10] = np.nan
    found = bucketed(values, 64)
    assert len(found.mean) == len(found.last) == 64
    assert found.last[-1] == 999
    assert (found.low.min(), found.high.max()) == (0.0, 1e6)
    sizes = np.diff(np.searchsorted(np.flatnonzero(np.isfinite(values)), found.last, side="right"), prepend=0)
    assert float(found.mean @ sizes) == pytest.approx(np.nansum(values))
    few = bucketed(np.array([1.0, np.nan, 3.0]), 64)
    assert (few.last.tolist(), few.mean.tolist()) == ([0, 2], [1.0, 3.0])
    assert len(bucketed(np.full(3, np.nan), 64).mean) == 0


def test_a_run_that_went_on_from_another_folder_counts_its_own_steps(tmp_path: Path) -> None:
    logs = [step_log(step, tokens=100, seconds=60.0, resumed_from=10) for step in (11, 12, 13)]
    run = read_history(write_metrics(tmp_path, logs))
    assert total_tokens(run).tolist() == [100, 200, 300]
    found = summarize(run)
    assert (found.every_step, found.resumes) == (True, 1)
    assert found.tokens_per_s == pytest.approx(300 / 180)


def test_busy_mfu_is_the_mean_over_the_time_without_waiting(tmp_path: Path) -> None:
    steps = [(0.4, 0.0, 10.0), (0.2, 0.5, 40.0)]
    logs = [
        step_log(i, busy_mfu=busy, mfu=busy * (1 - wait), data_wait=wait, seconds=seconds)
        for i, (busy, wait, seconds) in enumerate(steps, 1)
    ]
    found = summarize(read_history(write_metrics(tmp_path, logs)))
    assert found.busy_mfu == pytest.approx((0.4 * 10 + 0.2 * 20) / 30)
    assert found.mfu == pytest.approx((0.4 * 10 + 0.1 * 40) / 50)


@pytest.mark.parametrize("times", [1, 3])
def test_resumptions_are_counted(times: int, tmp_path: Path) -> None:
    logs = [step_log(step, resumed_from=2 * min(step // 2, times)) for step in range(1, 12)]
    assert summarize(read_history(write_metrics(tmp_path, logs))).resumes == times


def test_numbers_that_cannot_be_are_shown_as_none_or_named(tmp_path: Path) -> None:
    found = summarize(read_history(write_metrics(tmp_path, [step_log(1, seconds=0.0, memory=float("nan"))])))
    assert np.isnan(found.tokens_per_s)
    assert found.memory == 0
    with (tmp_path / METRICS_NAME).open("a") as file:
        file.write(json.dumps({**asdict(step_log(2)), "tokens": 10**400}) + "\n")
    with pytest.raises(TrainError, match=r"damaged in line 2 \(OverflowError"):
        read_history(tmp_path)


@pytest.mark.parametrize("text", ["", "- a\n"])
def test_settings_that_are_none_are_named(text: str, tmp_path: Path) -> None:
    write_metrics(tmp_path, [step_log(1)])
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(TrainError, match=r"config\.yaml is damaged: .*expected keys and values"):
        read_history(tmp_path)


def test_rates_leave_profiled_steps_out_and_the_writing_of_their_profile(tmp_path: Path) -> None:
    # Steps of 10 seconds; a profiler makes two of them take 40, and writes for 500 before the fifth.
    ends = [10.0, 20.0, 60.0, 100.0, 610.0, 620.0]
    logs = [
        step_log(
            step,
            time=100.0 + end,
            seconds=40.0 if step in (3, 4) else 10.0,
            tokens=2000 if step == 5 else 1000,
            mfu=0.1 if step in (3, 4) else 0.4,
            busy_mfu=0.2 if step in (3, 4) else 0.5,
            data_wait=0.9 if step in (3, 4) else 0.2,
            profiled=step in (3, 4),
        )
        for step, end in enumerate(ends, 1)
    ]
    found = summarize(read_history(write_metrics(tmp_path, logs)))
    assert found.profiled == 2
    assert found.tokens_per_s == pytest.approx(5000 / 40)
    assert (found.mfu, found.busy_mfu, found.data_wait) == pytest.approx((0.4, 0.5, 0.2))
    assert (found.tokens, found.hours) == (7000, pytest.approx(620 / 3600))


def test_a_run_of_profiled_steps_alone_has_no_rate(tmp_path: Path) -> None:
    logs = [step_log(step, mfu=0.1, busy_mfu=0.1, profiled=True) for step in (1, 2)]
    found = summarize(read_history(write_metrics(tmp_path, logs)))
    assert np.isnan(found.tokens_per_s)
    assert (found.mfu, found.busy_mfu, found.profiled) == (None, None, 2)


@pytest.mark.parametrize(("most", "at", "of_source"), [(100, [3], [2]), (3, [1], [2]), (2, [], [1])])
def test_curves_of_updates_have_no_point_at_a_skipped_step_and_are_broken_there(
    most: int, at: list[int], of_source: list[int], tmp_path: Path
) -> None:
    logs = [
        step_log(
            step,
            # Only the gradients may not be finite.
            loss=99.0 if step in (4, 5) else 2.0,
            skipped={4: 1, 5: 2}.get(step, 0),
            eval_loss=1.0 if step in (1, 9) else None,
            loss_by_source={"a": 2.0} if step in (1, 2, 7, 9) else {},
        )
        for step in range(1, 10)
    ]
    run = read_history(write_metrics(tmp_path, logs))
    assert np.flatnonzero(np.isnan(curve(run, "loss"))).tolist() == [3, 4]
    assert np.isfinite(curve(run, "tokens_per_s")).all()
    points = {key: bucketed(curve(run, key), most) for key in ("loss", "eval_loss", "loss_by_source/a", "lr")}
    found = {key: breaks(run, key, values) for key, values in points.items()}
    # In three points two skipped steps are half of the second one, [1, 2], [3, 6], [7, 8, 9]; in two less than that.
    assert found == {"loss": at, "eval_loss": [], "loss_by_source/a": of_source, "lr": []}
