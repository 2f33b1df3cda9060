"""Checkpoints are written beside the training: of the moment of the call, one at a time, whole or not there."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.tensor import DTensor

from lmms.configs.errors import TrainError
from lmms.train.checkpoint import write as saver_module
from lmms.train.checkpoint.files import COMPLETE_NAME, read_complete
from lmms.train.checkpoint.keep import Keep
from lmms.train.checkpoint.read import checkpoint_name, list_checkpoints, load_checkpoint, read_state, tensors_of
from lmms.train.checkpoint.write import Saver, saving
from lmms.train.parallel.sharding import shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from tests.kit.checkpoints import numbers, save, silent, state_at, stored
from tests.kit.ranks import free_port, on_ranks

KILLED_WHILE_IT_WRITES = """
import sys, time
from pathlib import Path
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from lmms.train.parallel.world import start_world
from tests.kit.checkpoints import save
output, world = Path(sys.argv[1]), start_world("cpu")
save(output, world, 1)
write = FileSystemWriter.finish
def stay(*arguments, **named):
    write(*arguments, **named)
    print("tensors written", flush=True)
    time.sleep(100)
FileSystemWriter.finish = stay
save(output, world, 2)
"""

FILE_LIMIT = """
import os, resource, sys
from pathlib import Path
import torch
from lmms.configs.errors import TrainError
from lmms.train.checkpoint.keep import Keep
from lmms.train.checkpoint.write import saving
from lmms.train.parallel.world import start_world
from tests.kit.checkpoints import silent, state_at
output, world = Path(sys.argv[1]), start_world("cpu")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with saving(output, world, Keep(), 0, asynchronous=True, grace_s=1, report=silent) as saver:
        saver.save(state_at(2), {"model.a": torch.ones(100_000)})
except TrainError as error:
    print(error, flush=True)
os._exit(0)
"""

DEAD_PEER = """
import os, sys
from pathlib import Path
from lmms.train.checkpoint import write as saver
from lmms.train.parallel.world import start_world
from tests.kit.checkpoints import save
world = start_world("cpu")
def die(*arguments):
    os._exit(5)
if world.rank == 1:
    saver.describe_files = die
try:
    save(Path(sys.argv[1]), world, 1)
except saver.TrainError as error:
    print(error, flush=True)
    os._exit(4)
"""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Saves stop before their first byte until this is set."""
    event, begin = threading.Event(), saver_module._begin

    def wait(*arguments: Any) -> None:
        assert event.wait(20)
        begin(*arguments)

    monkeypatch.setattr(saver_module, "_begin", wait)
    yield event
    event.set()


def started(output: Path, world: World, report: Callable[[str], None] = silent, asynchronous: bool = True) -> Saver:
    return Saver(output, world, Keep(), 0, asynchronous, report)


def test_the_bytes_are_those_of_the_moment_of_the_call(tmp_path: Path, world: World, held: threading.Event) -> None:
    with saving(tmp_path, world, Keep(), 0, asynchronous=True, grace_s=1, report=silent) as saver:
        tensors = numbers(3)
        saver.save(state_at(3), tensors)
        for tensor in tensors.values():
            tensor.fill_(-1)
        assert not tmp_path.exists() or list(tmp_path.iterdir()) == []
        held.set()
        saver.save(state_at(4), tensors)
        for tensor in tensors.values():
            tensor.fill_(-2)
    for step, value in ((3, 3.0), (4, -1.0)):
        found = stored(tmp_path / checkpoint_name(step))
        assert all(torch.equal(found[name], tensor) for name, tensor in numbers(value).items()), step


def test_one_save_at_a_time_is_written_and_each_is_reported_once(
    tmp_path: Path, world: World, held: threading.Event
) -> None:
    lines: list[str] = []
    saver = started(tmp_path, world, lines.append)
    saver.save(state_at(1), numbers(1))
    saver.check()
    assert lines == []
    threading.Timer(0.2, held.set).start()
    saver.save(state_at(2), numbers(2))
    assert lines == [f"saved {tmp_path / checkpoint_name(1)}"]
    saver.wait()
    saver.wait()
    saver.check()
    assert lines[1:] == [f"saved {tmp_path / checkpoint_name(2)}"]


def test_a_save_that_is_not_asynchronous_is_there_when_the_call_returns(tmp_path: Path, world: World) -> None:
    lines: list[str] = []
    started(tmp_path, world, lines.append, asynchronous=False).save(state_at(1), numbers(1))
    assert list_checkpoints(tmp_path) == ([tmp_path / checkpoint_name(1)], [])
    assert lines == [f"saved {tmp_path / checkpoint_name(1)}"]


def test_the_step_that_was_saved_last_is_not_saved_again(tmp_path: Path, world: World) -> None:
    saver = started(tmp_path, world, asynchronous=False)
    saver.save(state_at(0), numbers(0))
    assert list(tmp_path.iterdir()) == []
    saver.save(state_at(2), numbers(2))
    saver.save(state_at(2), numbers(5))
    assert torch.equal(stored(tmp_path / checkpoint_name(2))["model.a"], numbers(2)["model.a"])


def test_a_complete_checkpoint_is_never_written_over(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 2)
    with pytest.raises(TrainError, match="step-00000002 is a complete checkpoint already"):
        save(tmp_path, world, 2)
    assert list_checkpoints(tmp_path)[0] == [tmp_path / checkpoint_name(2)]


@pytest.mark.parametrize("call", ["check", "wait", "save"])
def test_an_error_in_the_background_is_raised_by_the_next_call(tmp_path: Path, world: World, call: str) -> None:
    (tmp_path / "step-00000001.part").write_text("a file where a folder has to go")
    saver = started(tmp_path, world)
    saver.save(state_at(1), numbers(1))
    writing = saver._writing
    assert writing is not None
    writing.join()
    with pytest.raises(TrainError, match=r"step-00000001: the checkpoint could not be written: .*0001\.part"):
        saver.save(state_at(2), numbers(2)) if call == "save" else getattr(saver, call)()
    saver.wait()


def test_a_disk_that_is_full_leaves_the_checkpoint_before(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, world, 1)

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("torch.distributed.checkpoint.filesystem.FileSystemWriter.write_data", full_disk)
        with pytest.raises(TrainError, match=r"step-00000002: .* could not be written: no space left$"):
            save(tmp_path, world, 2, keep=Keep(limit=1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full_disk)
        with pytest.raises(TrainError, match=r"step-00000003: .* could not be written: no space left$"):
            save(tmp_path, world, 3, keep=Keep(limit=1))
    complete, unfinished = list_checkpoints(tmp_path)
    assert [path.name for path in complete] == ["step-00000001"]
    assert unfinished == []
    assert save(tmp_path, world, 4, keep=Keep(limit=1)) == ["step-00000004"]


def test_a_limit_on_files_is_named_with_what_is_needed_and_kept(tmp_path: Path, world: World) -> None:
    save(tmp_path, world, 1)
    limited = subprocess.run([sys.executable, "-c", FILE_LIMIT, tmp_path], capture_output=True, text=True)
    assert limited.stdout == (
        f"{tmp_path}/step-00000002: the checkpoint could not be written: no file in {tmp_path} may be larger than"
        " 97.7 KiB (ulimit -f): 390.6 KiB are needed; raise the limit, or choose another folder; step-00000001 is"
        " kept, and the same command goes on from there\n"
    ), limited.stderr
    assert list_checkpoints(tmp_path) == ([tmp_path / checkpoint_name(1)], [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_of_a_mistake_is_an_error_too(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saver_module, "_begin", lambda *arguments: 1 / 0)
    with pytest.raises(TrainError, match="the thread that writes checkpoints died"):
        save(tmp_path, world, 1)
    # It is to end here, where pytest may find what it died of.
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def test_ctrl_c_interrupts_the_wait(tmp_path: Path, world: World, held: threading.Event) -> None:
    saver = started(tmp_path, world)
    saver.save(state_at(1), numbers(1))
    main = threading.main_thread().ident
    assert main is not None
    # A test process of several ignores it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        saver.wait()
    signal.signal(signal.SIGINT, before)
    held.set()
    saver.wait()
    assert list_checkpoints(tmp_path)[0] == [tmp_path / checkpoint_name(1)]


def test_a_run_that_fails_gives_the_pending_save_its_time(tmp_path: Path, world: World, held: threading.Event) -> None:
    lines: list[str] = []

    def fail(grace_s: float, step: int) -> None:
        with saving(tmp_path, world, Keep(), 0, asynchronous=True, grace_s=grace_s, report=lines.append) as saver:
            saver.save(state_at(step), numbers(step))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail(0.1, 1)
    assert lines == ["waiting up to 0.1 s for the checkpoint that is being written"]
    held.set()
    while not list_checkpoints(tmp_path)[0]:
        time.sleep(0.01)
    with pytest.raises(ZeroDivisionError):
        fail(20, 2)
    assert lines[-1] == f"saved {tmp_path / checkpoint_name(2)}"


def test_kill_9_in_the_middle_leaves_the_checkpoint_before(tmp_path: Path, world: World) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_IT_WRITES, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "tensors written\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert list_checkpoints(tmp_path) == ([tmp_path / checkpoint_name(1)], [tmp_path / "step-00000002.part"])
    assert save(tmp_path, world, 2) == ["step-00000001", "step-00000002"]


def sharded_model(world: World, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Three layers of odd sizes, cut over the ranks, and AdamW after one step."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 2, bias=False))
    shard_model(model, [model[0]], world, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(seed + 1)
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def save_and_train_on(world: World, folder: Path) -> None:
    model, optimizer = sharded_model(world, 1)
    with saving(folder / "run", world, Keep(), 0, asynchronous=True, grace_s=60, report=silent) as saver:
        tensors = tensors_of(model, optimizer)
        expected = {name: whole(tensor).clone() for name, tensor in tensors.items()}
        for step in (1, 2):
            saver.save(state_at(step), tensors)
            # The training's own collectives go on while the thread uses its group.
            for _ in range(20):
                torch.distributed.barrier()
            with torch.no_grad():
                for tensor in tensors.values():
                    tensor.mul_(2)
    if world.is_main:
        torch.save(expected, folder / "expected.pt")


def load_on_all(world: World, folder: Path) -> None:
    model, optimizer = sharded_model(world, 5)
    expected = torch.load(folder / "expected.pt")
    tensors = tensors_of(model, optimizer)
    for step in (1, 2):
        load_checkpoint(folder / "run" / checkpoint_name(step), tensors)
        for name, tensor in tensors.items():
            assert torch.equal(whole(tensor), step * expected[name]), name


def as_rank(rank: int, ranks: int, act: Callable[[World, Path], None], folder: Path) -> None:
    act(start_world("cpu"), folder)
    stop_world()


def test_what_two_ranks_save_is_read_by_one_and_by_four(tmp_path: Path, world: World) -> None:
    for ranks, act in ((2, save_and_train_on), (4, load_on_all)):
        on_ranks(as_rank, ranks, act, tmp_path)
    load_on_all(world, tmp_path)
    checkpoint = tmp_path / "run" / checkpoint_name(2)
    assert {path.name for path in checkpoint.glob("*.distcp")} == {"__0_0.distcp", "__1_0.distcp"}
    assert read_state(checkpoint).step == 2


def test_a_rank_that_dies_while_it_saves_is_an_error_on_the_others(tmp_path: Path) -> None:
    group = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DEAD_PEER, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=group | {"RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    printed = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [4, 5]
    assert "step-00000001: the checkpoint could not be written: " in printed[0]
    assert list_checkpoints(tmp_path) == ([], [])


def save_with_stale_folders(world: World, folder: Path) -> None:
    """Each rank lists the folder without what the other has written, as over a network file system it may."""
    others, iterdir = f"__{1 - world.rank}_0.distcp", Path.iterdir

    def stale(path: Path) -> Iterator[Path]:
        return (found for found in iterdir(path) if found.name != others)

    model, optimizer = sharded_model(world, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "iterdir", stale)
        with saving(folder, world, Keep(), 0, asynchronous=True, grace_s=60, report=silent) as saver:
            saver.save(state_at(1), tensors_of(model, optimizer))


def test_all_files_are_named_whatever_a_rank_sees_of_the_folder(tmp_path: Path) -> None:
    on_ranks(as_rank, 2, save_with_stale_folders, tmp_path)
    checkpoint = tmp_path / checkpoint_name(1)
    written = {path.name for path in checkpoint.iterdir()} - {COMPLETE_NAME}
    assert {"__0_0.distcp", "__1_0.distcp"} < written
    assert set(read_complete(checkpoint)) == written


def test_a_file_that_the_metadata_names_and_nobody_finds_is_an_error(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = FileSystemWriter.finish

    def lose(self: FileSystemWriter, *arguments: Any, **named: Any) -> None:
        finish(self, *arguments, **named)
        (tmp_path / "step-00000001.part" / "__0_0.distcp").unlink()

    monkeypatch.setattr(FileSystemWriter, "finish", lose)
    with pytest.raises(TrainError, match=r"could not be written: .*No such file .*__0_0\.distcp"):
        save(tmp_path, world, 1)
    assert list_checkpoints(tmp_path)[0] == []
