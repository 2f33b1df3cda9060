"""Which checkpoints go, and which one best.json names."""

import errno
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmms.configs.errors import TrainError
from lmms.train.checkpoint.keep import (
    BEST_NAME,
    Keep,
    best_checkpoint,
    better,
    resumed_best,
    to_delete,
    write_best,
)
from lmms.train.checkpoint.read import checkpoint_name, list_checkpoints
from lmms.train.checkpoint.state import Best, Measure
from lmms.train.checkpoint.write import saving
from lmms.train.parallel.world import World, start_world, stop_world
from tests.kit.checkpoints import LOSS, numbers, save, state_at

STEPS = st.sets(st.integers(0, 60), max_size=20)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


@given(STEPS, st.none() | st.integers(1, 8), st.none() | st.integers(1, 12), st.none() | st.integers(0, 60))
def test_what_goes_is_old_no_multiple_and_not_the_best(
    steps: set[int], limit: int | None, every: int | None, best: int | None
) -> None:
    gone = to_delete(steps, Keep(limit=limit, every=every), best)
    stay = steps - set(gone)
    assert len(stay) + len(gone) == len(steps)
    assert gone == sorted(gone)
    newest = set(sorted(steps)[-limit:]) if limit else steps
    assert newest <= stay
    # Whatever stays beyond the newest has a reason.
    assert all(step == best or (every and step % every == 0) for step in stay - newest)
    assert best not in gone
    assert not any(every and step % every == 0 for step in gone)


@given(STEPS, st.integers(1, 8), st.none() | st.integers(1, 12), st.none() | st.integers(0, 60))
def test_deleting_once_is_enough_and_in_any_rhythm_the_same(
    steps: set[int], limit: int, every: int | None, best: int | None
) -> None:
    keep = Keep(limit=limit, every=every)
    at_the_end = steps - set(to_delete(steps, keep, best))
    assert to_delete(at_the_end, keep, best) == []
    after_each = set[int]()
    for step in sorted(steps):
        after_each |= {step}
        after_each -= set(to_delete(after_each, keep, best))
    assert after_each == at_the_end


def test_only_the_newest_are_kept(tmp_path: Path, world: World) -> None:
    assert save(tmp_path, world, 8, 9, 10, keep=Keep(limit=2)) == ["step-00000009", "step-00000010"]
    assert save(tmp_path, world, 11, keep=Keep(limit=1)) == ["step-00000011"]


def test_an_old_checkpoint_that_cannot_be_deleted_is_an_alarm_and_saving_goes_on(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a file that somebody reads leaves a .nfs file in the folder."""
    remove = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if path.name.startswith("step-00000001") and not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        if not path.name.startswith("step-00000001"):
            remove(path, ignore_errors)

    lines: list[str] = []
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with saving(tmp_path, world, Keep(limit=1), 0, asynchronous=True, grace_s=1, report=lines.append) as saver:
        for step in (1, 2, 3):
            saver.save(state_at(step), numbers(step))
    part = tmp_path / "step-00000001.part"
    alarm = f"ALARM: the old checkpoint {part} could not be deleted (Directory not empty), and takes up room"
    assert [line.partition(";")[0] for line in lines] == [
        f"saved {tmp_path / checkpoint_name(1)}",
        f"saved {tmp_path / checkpoint_name(2)}",
        alarm,
        f"saved {tmp_path / checkpoint_name(3)}",
    ]
    assert list_checkpoints(tmp_path)[0] == [tmp_path / checkpoint_name(3)]
    assert part.exists()


def test_a_best_that_cannot_be_named_is_an_error_that_says_what_is_saved(tmp_path: Path, world: World) -> None:
    (tmp_path / BEST_NAME).mkdir()
    with pytest.raises(TrainError, match=r"step-00000002 is saved, but best\.json, .* cannot be written \(Is a dir"):
        save(tmp_path, world, 2, best=2)
    assert list_checkpoints(tmp_path)[0] == [tmp_path / checkpoint_name(2)]


def test_without_a_limit_all_are_kept(tmp_path: Path, world: World) -> None:
    assert len(save(tmp_path, world, 1, 2, 3)) == 3


def test_multiples_and_the_best_outlive_the_limit(tmp_path: Path, world: World) -> None:
    found = save(tmp_path, world, 2, 3, 4, 5, 6, 7, keep=Keep(limit=1, every=5), best=3)
    assert found == [BEST_NAME, *(checkpoint_name(step) for step in (3, 5, 7))]
    assert json.loads((tmp_path / BEST_NAME).read_text()) == {
        "checkpoint": "step-00000003",
        "step": 3,
        "value": 0.5,
        "metric": "loss",
        "greater": False,
        "shards": "",
        "loss_weight": "token",
    }


@pytest.mark.parametrize(("greater", "steps"), [(False, [1, 2, 2, 2, 5, 5]), (True, [1, 1, 1, 1, 1, 6])])
def test_the_best_is_the_first_of_the_best_values(greater: bool, steps: list[int]) -> None:
    best, found = None, []
    for step, value in enumerate([0.5, 0.25, 0.25, None, 0.125, 0.75], 1):
        best = better(best, step, Measure(metric="loss", greater=greater, shards="", loss_weight="token"), value)
        assert best is not None
        found.append(best.step)
    assert found == steps


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_never_the_best(value: float | None) -> None:
    assert better(None, 1, LOSS, value) is None


def test_a_resumed_run_keeps_its_best(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1, 2)
    best = better(None, 1, LOSS, 0.5)
    lines: list[str] = []
    assert resumed_best(tmp_path, best, LOSS, lines.append) == best
    assert lines == []
    assert best_checkpoint(tmp_path) == tmp_path / checkpoint_name(1)


@pytest.mark.parametrize(
    ("lost", "measure", "reason"),
    [
        ("step-00000002/trainer.json", LOSS, "trainer.json is missing"),
        (None, replace(LOSS, metric="eval_loss", shards="ab"), "this run measures {'metric': 'eval_loss'"),
        (None, replace(LOSS, greater=True), "this run measures {'metric': 'loss', 'greater': True"),
        (None, replace(LOSS, shards="cd"), "'shards': 'cd'"),
        (None, replace(LOSS, loss_weight="sqrt"), "'loss_weight': 'sqrt'}"),
        (None, None, "this run measures nothing"),
    ],
)
def test_a_best_that_is_gone_or_by_another_measure_is_forgotten_and_said(
    tmp_path: Path, world: World, lost: str | None, measure: Measure | None, reason: str
) -> None:
    save(tmp_path, world, 1, 2, best=2)
    if lost:
        (tmp_path / lost).unlink()
    lines: list[str] = []
    assert resumed_best(tmp_path, better(None, 2, LOSS, 0.5), measure, lines.append) is None
    (line,) = lines
    assert line.startswith("step-00000002 was the best by loss, but is not any more: ")
    assert reason in line
    assert best_checkpoint(tmp_path) is None


def test_a_run_without_a_best_leaves_no_best_json_of_another(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1, best=1)
    assert resumed_best(tmp_path, None, LOSS, print) is None
    assert best_checkpoint(tmp_path) is None


def test_best_json_of_a_lost_checkpoint_is_an_error_that_names_both(tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path) is None
    write_best(tmp_path, Best(step=4, value=0.5, measure=LOSS))
    assert [path.name for path in tmp_path.iterdir()] == [BEST_NAME]
    with pytest.raises(TrainError, match=r"best\.json names step-00000004, which is not a complete checkpoint"):
        best_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "4"])
def test_a_damaged_best_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / BEST_NAME).write_text(text)
    with pytest.raises(TrainError, match=r"best\.json is damaged"):
        best_checkpoint(tmp_path)
