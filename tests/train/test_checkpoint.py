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
from lmms.train.checkpoint import (
    COMPLETE_NAME,
    TrainerState,
    checkpoint_name,
    list_checkpoints,
    load_checkpoint,
    read_state,
    resume_from,
    save_checkpoint,
    tensors_of,
)
from lmms.train.complete import describe_files
from lmms.train.parallel import World, start_world, stop_world

STATE = TrainerState(
    step=0, position=0, seed=1, order="v1", shards="ab", model="/model", zero_steps={"llm": 3}, config={"max_steps": 5}
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


def numbers(value: float) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((2, 3), value), "optimizer.a.step": torch.tensor(value)}


def mark_complete(checkpoint: Path) -> None:
    """Write complete.json anew, for files that were changed."""
    names = [path.name for path in checkpoint.iterdir() if path.name != COMPLETE_NAME]
    (checkpoint / COMPLETE_NAME).write_text(json.dumps(describe_files(checkpoint, names)))


def save(output: Path, world: World, *steps: int, limit: int | None = None) -> list[str]:
    """Save these steps, one after the other; returns what is there in the end."""
    for step in steps:
        save_checkpoint(output, replace(STATE, step=step, position=8 * step), numbers(step), world, limit)
    return sorted(path.name for path in output.iterdir())


def test_state_and_tensors_come_back(tmp_path: Path, world: World) -> None:
    assert save(tmp_path, world, 7) == ["step-00000007"]
    checkpoint = tmp_path / checkpoint_name(7)
    assert read_state(checkpoint) == replace(STATE, step=7, position=56)
    found = numbers(0)
    load_checkpoint(checkpoint, found)
    assert all(torch.equal(found[name], value) for name, value in numbers(7).items())


def test_only_the_newest_are_kept(tmp_path: Path, world: World) -> None:
    assert save(tmp_path, world, 8, 9, 10, limit=2) == ["step-00000009", "step-00000010"]
    assert save(tmp_path, world, 11, limit=1) == ["step-00000011"]


def test_without_a_limit_all_are_kept(tmp_path: Path, world: World) -> None:
    assert len(save(tmp_path, world, 1, 2, 3)) == 3


def test_the_oldest_is_still_there_until_the_new_one_is_complete(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, world, 1)

    def full_disk(path: Path, target: Path) -> Path:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full_disk)
        with pytest.raises(
            TrainError, match=r"step-00000002\.part: the checkpoint could not be written: no space left"
        ):
            save(tmp_path, world, 2, limit=1)
    complete, unfinished = list_checkpoints(tmp_path)
    assert [path.name for path in complete] == ["step-00000001"]
    assert [path.name for path in unfinished] == ["step-00000002.part"]
    assert save(tmp_path, world, 3, limit=1) == ["step-00000003"]


@pytest.mark.parametrize("lost", [COMPLETE_NAME, "trainer.json", "__0_0.distcp"])
def test_a_checkpoint_that_lost_a_file_is_passed_over_and_refused_by_name(
    tmp_path: Path, world: World, lost: str
) -> None:
    save(tmp_path, world, 1, 2)
    broken = tmp_path / checkpoint_name(2)
    (broken / lost).unlink()
    assert resume_from("auto", tmp_path) == tmp_path / checkpoint_name(1)
    assert list_checkpoints(tmp_path)[1] == [broken]
    with pytest.raises(TrainError, match=rf"step-00000002 is not a complete checkpoint \(.*{lost}"):
        resume_from(str(broken), tmp_path)
    with pytest.raises(TrainError, match="not a complete checkpoint"):
        read_state(broken)


def test_a_truncated_file_is_found_by_its_size(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    data = tmp_path / checkpoint_name(1) / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-1])
    assert resume_from("auto", tmp_path) is None
    with pytest.raises(TrainError, match=r"__0_0\.distcp is \d+ bytes, expected \d+ bytes"):
        resume_from(str(data.parent), tmp_path / "other")


def test_resume_takes_the_newest_or_the_one_that_is_named_or_none(tmp_path: Path, world: World) -> None:
    assert resume_from("auto", tmp_path / "nothing here") is None
    assert resume_from("never", tmp_path / "nothing here") is None
    save(tmp_path / "a", world, 9, 10)
    newest = tmp_path / "a" / checkpoint_name(10)
    assert resume_from("auto", tmp_path / "a") == newest
    assert resume_from(str(newest), tmp_path / "a") == newest
    assert resume_from(str(newest), tmp_path / "b") == newest


@pytest.mark.parametrize("setting", ["never", "step-00000001"])
def test_checkpoints_that_a_run_would_meet_again_are_in_the_way(tmp_path: Path, world: World, setting: str) -> None:
    save(tmp_path, world, 1, 2)
    with pytest.raises(TrainError, match=r"holds later checkpoints, up to step-00000002; delete"):
        resume_from(setting if setting == "never" else str(tmp_path / setting), tmp_path)


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
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
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
    assert resume_from("auto", tmp_path) == tmp_path / checkpoint_name(1)
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


def test_an_interrupt_during_a_save_stays_one(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem.FileSystemWriter.write_data", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, world, 1)
    assert list_checkpoints(tmp_path)[0] == []
