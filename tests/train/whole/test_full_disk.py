"""A run on a disk that fills up: what it says, what it leaves, and that the same command goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.errors import TrainError
from lmms.train.checkpoint.read import checkpoint_name, list_checkpoints
from lmms.train.run import train
from lmms.train.watch.metrics import StepLog
from tests.kit.runs import read_metrics, run_config, write_run


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system takes the right to mount one: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path, left: int) -> None:
    """Leave so many bytes of the file's disk free."""
    space = os.statvfs(file.parent)
    file.write_bytes(bytes(space.f_bavail * space.f_frsize - left))


def lines_of(settings: dict[str, Any], steps: int) -> list[str]:
    """What a run to this step says."""
    said: list[StepLog | str] = []
    train(run_config(settings, max_steps=steps, save_steps=1), said.append)
    return [line for line in said if isinstance(line, str)]


def test_a_run_that_fills_the_disk_says_so_and_the_same_command_goes_on(tmp_path: Path, disk: Path) -> None:
    output = disk / "out"
    settings = write_run(tmp_path, "qwen2") | {"output": str(output)}
    lines_of(settings, 1)
    fill(disk / "other", 200_000)
    full = rf"step-00000002: .* disk of {output} is full: .* are needed, .* are free; .* step-00000001 is kept"
    for _ in range(2):
        with pytest.raises(TrainError, match=full):
            lines_of(settings, 3)
        assert list_checkpoints(output) == ([output / checkpoint_name(1)], [])
    # What a kill leaves of a save, until nothing is free.
    (disk / "other").unlink()
    leftover = output / "step-00000002.part"
    leftover.mkdir()
    fill(leftover / "__0_0.distcp", 0)
    lines = lines_of(settings, 3)
    assert lines[0].startswith(f"deleted {leftover}, which an earlier run left half-written (")
    assert not leftover.exists()
    assert [line["step"] for line in read_metrics(output)] == [1, 2, 3]
    assert [path.name for path in list_checkpoints(output)[0]] == [checkpoint_name(step) for step in (1, 2, 3)]


@pytest.mark.parametrize("name", ["config.yaml", "kernels.json"])
def test_a_run_that_cannot_write_its_first_files_says_so(tmp_path: Path, name: str) -> None:
    settings = write_run(tmp_path, "qwen2")
    (tmp_path / "out" / name).mkdir(parents=True)
    with pytest.raises(TrainError, match=r"out cannot be written: Is a directory; make room, or choose another output"):
        lines_of(settings, 1)
