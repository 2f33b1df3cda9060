"""A checkpoint is complete or is not used; what it holds comes back exactly."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import xxhash
from torch import nn

from lmms.configs.errors import TrainError
from lmms.train.checkpoint.files import COMPLETE_NAME, fault_of
from lmms.train.checkpoint.read import (
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    read_state,
    step_folders,
    tensors_of,
)
from lmms.train.checkpoint.state import Best
from lmms.train.parallel.world import World, of_all_ranks, start_world, stop_world
from tests.kit.checkpoints import LOSS, STATE, flip_a_bit, mark_complete, numbers, save, state_at


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


def test_state_and_tensors_come_back(tmp_path: Path, world: World) -> None:
    assert save(tmp_path, world, 7) == ["step-00000007"]
    checkpoint = tmp_path / checkpoint_name(7)
    as_json = {"max_steps": 5, "train": {"vision": "frozen"}, "optim": {"betas": [0.9, 0.95]}}
    assert read_state(checkpoint) == replace(STATE, step=7, position=56, config=as_json)
    found = numbers(0)
    load_checkpoint(checkpoint, found)
    assert all(torch.equal(found[name], value) for name, value in numbers(7).items())


@pytest.mark.parametrize("lost", [COMPLETE_NAME, "trainer.json", "__0_0.distcp"])
def test_a_checkpoint_that_lost_a_file_is_not_complete(tmp_path: Path, world: World, lost: str) -> None:
    save(tmp_path, world, 1, 2)
    broken = tmp_path / checkpoint_name(2)
    (broken / lost).unlink()
    assert list_checkpoints(tmp_path) == ([tmp_path / checkpoint_name(1)], [broken])
    with pytest.raises(TrainError, match=rf"step-00000002 is not a complete checkpoint: .*{lost}"):
        read_state(broken)


def test_only_folders_with_the_name_of_a_step_are_checkpoints(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    whole = tmp_path / checkpoint_name(1)
    for name in ("step-00000002.part", "step-00000003.broken", "step-4", "step-123456789"):
        shutil.copytree(whole, tmp_path / name)
        assert fault_of(tmp_path / name) is None
    (tmp_path / "step-00000005").write_text("a file")
    assert step_folders(tmp_path) == {1: whole, 123456789: tmp_path / "step-123456789"}
    assert list_checkpoints(tmp_path)[1] == [tmp_path / "step-00000002.part"]


def test_tensors_that_do_not_fit_are_named(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    checkpoint = tmp_path / checkpoint_name(1)
    with pytest.raises(TrainError, match=r"model\.b is missing, expected \[1\]"):
        load_checkpoint(checkpoint, {**numbers(0), "model.b": torch.zeros(1)})
    with pytest.raises(TrainError, match=r"model\.a has shape \[2, 3\], expected \[3, 2\]"):
        load_checkpoint(checkpoint, {"model.a": torch.zeros(3, 2)})


def test_a_checkpoint_can_be_moved(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 4)
    moved = shutil.move(tmp_path / checkpoint_name(4), tmp_path / "elsewhere")
    found = numbers(0)
    load_checkpoint(moved, found, alone=True)
    assert torch.equal(found["model.a"], numbers(4)["model.a"])


def test_tied_weights_are_stored_once_and_averages_under_the_name_of_their_parameter() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.AdamW(model.parameters())
    model["a"].weight.grad = torch.ones(2, 2)
    optimizer.step()
    assert tensors_of(model, optimizer).keys() == {
        "model.a.weight",
        "optimizer.a.weight.step",
        "optimizer.a.weight.exp_avg",
        "optimizer.a.weight.exp_avg_sq",
    }
    assert tensors_of(model, None).keys() == {"model.a.weight"}


def test_the_marker_names_every_other_file(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    checkpoint = tmp_path / checkpoint_name(1)
    named = json.loads((checkpoint / COMPLETE_NAME).read_text())
    assert named == {
        p.name: {"bytes": p.stat().st_size, "xxh3": xxhash.xxh3_64_hexdigest(p.read_bytes())}
        for p in checkpoint.iterdir()
        if p.name != COMPLETE_NAME
    }
    assert ".metadata" in named


def test_tensors_that_torch_cannot_read_are_an_error_that_names_the_checkpoint(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    data = tmp_path / checkpoint_name(1) / "__0_0.distcp"
    data.write_bytes(bytes(data.stat().st_size))
    mark_complete(data.parent)
    with pytest.raises(TrainError, match="step-00000001 is damaged: its tensors cannot be read"):
        load_checkpoint(data.parent, numbers(0))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "trainer.json"])
def test_a_flipped_bit_is_an_error_that_names_the_file(tmp_path: Path, world: World, name: str, alone: bool) -> None:
    save(tmp_path, world, 1)
    file = tmp_path / checkpoint_name(1) / name
    flip_a_bit(file)
    with pytest.raises(TrainError, match=rf"step-00000001/{name} is damaged: its hash"):
        load_checkpoint(file.parent, numbers(0), alone=alone)
    if name == "trainer.json":
        with pytest.raises(TrainError, match=r"trainer\.json is damaged"):
            read_state(file.parent)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "complete.json is damaged"),
        ("[1]", "complete.json is damaged: expected"),
        ('{"trainer.json": 161}', "complete.json is damaged: expected"),
        ("{}", r"complete.json does not name \.metadata"),
        ('{".metadata": {"bytes": 1, "xxh3": "0"}}', "complete.json does not name trainer.json"),
    ],
)
def test_a_damaged_marker_makes_a_checkpoint_incomplete(tmp_path: Path, world: World, text: str, fault: str) -> None:
    save(tmp_path, world, 1, 2)
    broken = tmp_path / checkpoint_name(2)
    (broken / COMPLETE_NAME).write_text(text)
    assert list_checkpoints(tmp_path)[1] == [broken]
    with pytest.raises(TrainError, match=fault):
        read_state(broken)


@pytest.mark.parametrize("text", ["{", '{"step": 1}', "[]", '{"another": 1}'])
def test_a_state_of_another_version_is_named(tmp_path: Path, world: World, text: str) -> None:
    save(tmp_path, world, 1)
    checkpoint = tmp_path / checkpoint_name(1)
    (checkpoint / "trainer.json").write_text(text)
    mark_complete(checkpoint)
    with pytest.raises(TrainError, match=r"trainer\.json is not of this version"):
        read_state(checkpoint)


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"cno_such_module\nname\n.", b"not a pickle"])
def test_metadata_that_cannot_be_read_is_named(tmp_path: Path, world: World, data: bytes) -> None:
    save(tmp_path, world, 1)
    checkpoint = tmp_path / checkpoint_name(1)
    (checkpoint / ".metadata").write_bytes(data)
    mark_complete(checkpoint)
    with pytest.raises(TrainError, match=r"\.metadata cannot be read"):
        load_checkpoint(checkpoint, numbers(0))


def test_tensors_that_would_be_dropped_are_named(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    checkpoint = tmp_path / checkpoint_name(1)
    load_checkpoint(checkpoint, {"model.a": torch.zeros(2, 3)})
    with pytest.raises(TrainError, match=r"optimizer\.a\.step is unexpected"):
        load_checkpoint(checkpoint, {"model.a": torch.zeros(2, 3), "optimizer.b": torch.zeros(())})


def test_what_fails_on_a_rank_is_an_error_of_all(world: World) -> None:
    def fail() -> int:
        raise OSError("the disk is gone")

    assert of_all_ranks(lambda: 5) == [5]
    with pytest.raises(TrainError, match="the disk is gone"):
        of_all_ranks(fail)


def test_the_state_at_a_step_is_what_was_saved(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 3, 4, best=3)
    best = Best(step=3, value=0.5, measure=LOSS)
    assert read_state(tmp_path / checkpoint_name(4)) == state_at(
        4, best=best, config=json.loads(json.dumps(STATE.config))
    )
