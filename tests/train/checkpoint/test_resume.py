"""From which checkpoint a run goes on, and with what it may not."""

import errno
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmms.configs.errors import TrainError
from lmms.train.checkpoint.read import checkpoint_name, list_checkpoints
from lmms.train.checkpoint.resume import changes, clear_leftovers, output_locked, resume_from, resumed_state
from lmms.train.checkpoint.state import Best
from lmms.train.parallel.world import World, start_world, stop_world
from lmms.train.step import seed_step
from tests.kit.checkpoints import LOSS, STATE, flip_a_bit, mark_complete, phase, save, silent, state_at


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


def test_resume_takes_the_newest_or_the_one_that_is_named_or_none(tmp_path: Path, world: World) -> None:
    assert resume_from("auto", tmp_path / "nothing here", world, silent) is None
    assert resume_from("never", tmp_path / "nothing here", world, silent) is None
    save(tmp_path / "a", world, 9, 10)
    newest = tmp_path / "a" / checkpoint_name(10)
    assert resume_from("auto", tmp_path / "a", world, silent) == newest
    assert resume_from(str(newest), tmp_path / "a", world, silent) == newest
    assert resume_from(str(newest), tmp_path / "b", world, silent) == newest


@pytest.mark.parametrize("setting", ["never", "step-00000001"])
def test_checkpoints_that_a_run_would_meet_again_are_in_the_way(tmp_path: Path, world: World, setting: str) -> None:
    save(tmp_path, world, 1, 2)
    with pytest.raises(TrainError, match=r"holds later checkpoints, up to step-00000002; delete"):
        resume_from(setting if setting == "never" else str(tmp_path / setting), tmp_path, world, silent)


def test_the_same_step_of_another_run_is_in_the_way(tmp_path: Path, world: World) -> None:
    save(tmp_path / "a", world, 1)
    save(tmp_path / "b", world, 1)
    with pytest.raises(TrainError, match=r"b holds later checkpoints, up to step-00000001"):
        resume_from(str(tmp_path / "a" / checkpoint_name(1)), tmp_path / "b", world, silent)


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("complete.json", "lost", "it has no complete.json"),
        ("complete.json", "cut", "complete.json is damaged"),
        ("trainer.json", "lost", "trainer.json is missing"),
        ("trainer.json", "flipped", "the hash of trainer.json is not that of complete.json"),
        (".metadata", "flipped", "the hash of .metadata is not that of complete.json"),
        ("__0_0.distcp", "lost", "__0_0.distcp is missing"),
        ("__0_0.distcp", "cut", "__0_0.distcp is "),
        ("__0_0.distcp", "flipped", "the hash of __0_0.distcp is not that of complete.json"),
    ],
)
def test_a_broken_newest_is_set_aside_and_the_one_before_it_used(
    tmp_path: Path, world: World, name: str, fault: str, message: str
) -> None:
    save(tmp_path, world, 1, 2)
    broken = tmp_path / checkpoint_name(2)
    if fault == "lost":
        (broken / name).unlink()
    elif fault == "cut":
        (broken / name).write_bytes((broken / name).read_bytes()[:-1])
    else:
        flip_a_bit(broken / name)
    with pytest.raises(TrainError, match=name):
        resume_from(str(broken), tmp_path, world, silent)
    lines: list[str] = []
    assert resume_from("auto", tmp_path, world, lines.append) == tmp_path / checkpoint_name(1)
    (line,) = lines
    assert line.startswith(f"{broken} is broken ({message}")
    assert line.endswith("set aside as step-00000002.broken; the one before it is used, if any")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002.broken"]
    assert list_checkpoints(tmp_path) == ([tmp_path / checkpoint_name(1)], [])
    assert save(tmp_path, world, 2) == ["step-00000001", "step-00000002", "step-00000002.broken"]


def test_a_run_of_which_only_broken_checkpoints_are_left_does_not_start_anew(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1, 2, 3)
    flip_a_bit(tmp_path / checkpoint_name(1) / "__0_0.distcp")
    (tmp_path / checkpoint_name(2) / "complete.json").unlink()
    flip_a_bit(tmp_path / checkpoint_name(3) / "trainer.json")
    (tmp_path / "step-00000003.broken").mkdir()
    lines: list[str] = []
    for _ in range(2):
        with pytest.raises(TrainError, match=r"holds none but broken checkpoints, such as step-00000003\.broken2"):
            resume_from("auto", tmp_path, world, lines.append)
    assert [line.split()[0] for line in lines] == [str(tmp_path / checkpoint_name(step)) for step in (3, 2, 1)]
    assert (tmp_path / "step-00000003.broken2").is_dir()


def test_a_state_of_another_version_is_not_set_aside(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    checkpoint = tmp_path / checkpoint_name(1)
    (checkpoint / "trainer.json").write_text("{}")
    mark_complete(checkpoint)
    assert resume_from("auto", tmp_path, world, silent) == checkpoint


STORED = state_at(6, best=Best(step=4, value=1.5, measure=LOSS), zero_steps={"llm": 1})
AT = Path("runs/step-00000006")


def mixture(*turns: int, sets: str = "abcd") -> dict[str, Any]:
    """What says in a state which sets there are, and how often each has its turn."""
    names = [sets[2 * i : 2 * i + 2] for i in range(len(turns))]
    return {"shards": tuple(names), "phases": (phase(**dict(zip(names, turns, strict=True))),)}


def test_a_resumed_run_stands_where_the_checkpoint_does() -> None:
    fresh = replace(STATE, model="/moved", config={**STATE.config, "max_steps": 9})
    state = resumed_state(fresh, STORED, AT, ())
    assert state == replace(STORED, model="/moved", config={**STATE.config, "max_steps": 9})


def prints(name: str, value: str) -> dict[str, Any]:
    return {"fingerprints": {**STATE.fingerprints, name: value}}


@pytest.mark.parametrize(
    ("change", "found", "expected", "advice"),
    [
        ({"seed": 2}, "seed 1", "2", "go on with the same seed"),
        ({"order": "v2"}, "order v1", "v2", "go on with the same version of lmms"),
        ({"group_packs": 1}, "data.group_packs 2", "1", "go on with the same data.group_packs"),
        (mixture(8), "shards [ab, cd]", "[ab]", "set resume_changes: [mixture]"),
        (mixture(3, 5, sets="abxy"), "shards [ab, cd]", "[ab, xy]", "set resume_changes: [mixture]"),
        (mixture(5, 3), "mixture [3, 5]", "[5, 3]", "set resume_changes: [mixture]"),
        ({"global_packs": 4}, "data.global_packs 8", "4", "set resume_changes: [global_packs]"),
        (prints("tokenizer", "t2"), "tokenizer t1", "t2", "go on with the same shards and model"),
        (prints("template", "t2"), "template u1", "t2", "go on with the same shards and model"),
        (prints("vision", "t2"), "vision v1", "t2", "go on with the same shards and model"),
        (prints("packing", "t2"), "packing p1", "t2", "go on with the same shards and model"),
        ({"costs": "c2"}, "costs c1", "c2", "go on with the same model"),
        # The cost of a pack depends on what is frozen.
        (
            {"config": {"train": {"llm": "frozen"}}, "costs": "c2"},
            "train {vision: frozen}",
            "{llm: frozen}",
            "go on with the same train",
        ),
    ],
)
def test_what_would_train_something_else_is_refused_with_both_values(
    change: dict[str, Any], found: str, expected: str, advice: str
) -> None:
    with pytest.raises(TrainError) as raised:
        resumed_state(replace(STATE, **change), STORED, AT, ())
    message = str(raised.value)
    assert message.startswith(f"{AT} was trained with {found}, this run has {expected}: ")
    assert advice in message
    assert message.endswith(", or start in another output folder")


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"global_packs": 4}, "global_packs"),
        (mixture(5, 3), "mixture"),
        (mixture(3, 5, sets="abxy"), "mixture"),
        ({**mixture(8), **prints("packing", "p2")}, "mixture"),
    ],
)
def test_a_change_that_is_allowed_takes_effect_from_the_position(change: dict[str, Any], allowed: str) -> None:
    fresh = replace(STATE, **change)
    other = {"global_packs": "mixture", "mixture": "global_packs"}[allowed]
    with pytest.raises(TrainError, match=f"resume_changes: \\[{allowed}\\]"):
        resumed_state(fresh, STORED, AT, [other])
    state = resumed_state(fresh, STORED, AT, [allowed])
    assert (state.step, state.position, state.phases) == (6, 48, STORED.phases)
    assert (state.shards, state.global_packs) == (fresh.shards, fresh.global_packs)


@pytest.mark.parametrize("change", [prints("tokenizer", "new"), prints("template", "new"), {"costs": "c2"}])
def test_another_mixture_must_still_be_for_the_same_model(change: dict[str, Any]) -> None:
    with pytest.raises(TrainError, match=r"was trained with (tokenizer|template|costs)"):
        resumed_state(replace(STATE, **mixture(8), **change), STORED, AT, ["mixture"])


def test_the_mixture_is_that_of_the_last_phase() -> None:
    stored = replace(STORED, phases=(*mixture(1, 7)["phases"], *STATE.phases))
    assert resumed_state(STATE, stored, AT, ()).phases == stored.phases


def test_settings_that_changed_are_listed() -> None:
    before = {"max_steps": 1, "optim": {"betas": [0.9, 0.95]}, "eval": None}
    now = {"max_steps": 2, "optim": {"betas": (0.9, 0.95)}, "eval": {"every_steps": 3}}
    assert list(changes(before, now)) == [
        "changed since the checkpoint: eval.every_steps was null, is 3",
        "changed since the checkpoint: max_steps was 1, is 2",
    ]


def test_an_output_folder_is_for_one_run(tmp_path: Path) -> None:
    with (
        output_locked(tmp_path / "out"),
        pytest.raises(TrainError, match="another run is writing"),
        output_locked(tmp_path / "out"),
    ):
        pass
    with output_locked(tmp_path / "out"):
        assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_fails_before_it_writes_leaves_no_folder_that_was_made_for_it(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="refused"), output_locked(tmp_path / "a" / "out"):
        raise TrainError("refused")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(TrainError, match="refused"), output_locked(tmp_path / "mine"):
        raise TrainError("refused")
    with suppress(FileExistsError), output_locked(tmp_path / "b"):
        (tmp_path / "b" / "metrics.jsonl").touch()
        (tmp_path / "b").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "mine"]


def test_what_a_killed_run_left_half_written_goes_and_the_rest_stays(tmp_path: Path) -> None:
    kept = [tmp_path / "step-00000001" / "trainer.json", tmp_path / "oom" / "start-rank-0.pickle"]
    parts = [
        tmp_path / "oom" / "start-rank-1.pickle.part",
        tmp_path / "profile" / "steps-1-2-rank-0.part" / "trace.json",
        tmp_path / "step-00000002.part" / "trainer.json",
        tmp_path / "trained.json.part",
    ]
    for path in (*kept, *parts):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(2048))
    lines: list[str] = []
    clear_leftovers(tmp_path, lines.append)
    assert len(lines) == 4
    assert lines[0] == f"deleted {parts[0]}, which an earlier run left half-written (2.0 KiB)"
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    assert list(tmp_path.rglob("*.part")) == []


def test_a_leftover_that_cannot_be_deleted_is_an_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    part = tmp_path / "step-00000002.part"
    part.mkdir()
    lines: list[str] = []
    clear_leftovers(tmp_path, lines.append)
    assert lines == [
        f"ALARM: {part}, left half-written by an earlier run (0 bytes), cannot be deleted: Operation not permitted"
    ]


def draws() -> tuple[Any, ...]:
    old = np.random.normal(size=2).tolist(), int(np.random.randint(2**31))
    return random.random(), random.gauss(0, 1), *old, torch.rand(2).tolist(), int(torch.randperm(1000)[0])


def test_random_numbers_of_every_kind_repeat_after_a_resume() -> None:
    whole = []
    for step in range(1, 5):
        seed_step(7, step, 0)
        whole.append([draws(), draws()])
    # What a process that starts anew has drawn before makes no difference.
    draws()
    for step in (3, 4):
        seed_step(7, step, 0)
        assert [draws(), draws()] == whole[step - 1]


def test_no_two_steps_seeds_or_ranks_draw_alike() -> None:
    found = []
    for seed, step, rank in ((7, 1, 0), (7, 2, 0), (7, 1, 1), (8, 1, 0), (71, 0, 0)):
        seed_step(seed, step, rank)
        found.append(draws())
    for kind in zip(*found, strict=True):
        assert len(set(map(str, kind))) == len(found)
