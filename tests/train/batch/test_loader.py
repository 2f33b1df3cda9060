"""Batches through loader processes: the same as without, every fault by name and in time, and nothing left behind."""

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest
import torch

from lmms.configs.contract.manifest import Dataset, open_dataset
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import DatasetError, TrainError
from lmms.train.batch.batch import Batch
from lmms.train.batch.loader import batches
from lmms.train.batch.recipe import Recipe, SetRecipe
from lmms.train.data.shards import PackReader, Place, Request, read_sidecar
from lmms.train.families.family import Tower
from tests.kit.shards import PICTURE_MODEL, PICTURE_VISION, make_pack, write_shards

STALL_S = 60.0


@pytest.fixture(scope="module")
def packs() -> list[Pack]:
    """Seven packs of one to three conversations; every second one has pictures."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(4, 30, 1 + i % 3).tolist() for i in range(7)]
    return [make_pack(rng, length, 99, images=2 * (i % 2), model=PICTURE_MODEL) for i, length in enumerate(lengths)]


@pytest.fixture
def dataset(tmp_path: Path, packs: list[Pack]) -> Dataset:
    """The packs in two shards: 0 to 2 and 3 to 6."""
    return open_dataset(write_shards(tmp_path / "shards", packs, PICTURE_MODEL, seq_len=4096))


def recipe_of(dataset: Dataset) -> Recipe:
    one = SetRecipe(vision=PICTURE_VISION, limits=dataset.manifest.limits, sources=("made.jsonl",))
    return Recipe(
        family=PICTURE_MODEL.family,
        sets=(one,),
        tower=Tower(patch_size=14, merge_size=2, window_size=112, position_side=0),
        vocab_size=100,
        on_bad_media="stop",
    )


def request_of(dataset: Dataset, *packs: int, counts: bool = True) -> Request:
    sidecar = read_sidecar(dataset)
    return Request(tuple(map(sidecar.place, packs)), counts, ())


def batches_of(
    dataset: Dataset, plan: Iterator[Request] | Sequence[Sequence[int]], workers: int, stall_s: float = STALL_S
) -> Iterator[Batch]:
    requests = (one if isinstance(one, Request) else request_of(dataset, *one) for one in plan)
    return batches(PackReader([dataset]), recipe_of(dataset), requests, workers, stall_s)


def shard_of(dataset: Dataset, number: int) -> Path:
    return Path(dataset.where) / dataset.shards[number].name


def content(batch: Batch) -> list[object]:
    tensors = [batch.input_ids, batch.position_ids, batch.cu_seqlens, batch.labels, batch.weights, batch.groups]
    assert batch.vision is not None
    tensors += [batch.vision.patches, batch.vision.grid_thw, *map(torch.as_tensor, batch.vision.tower.values())]
    return [batch.packs, batch.digest, *((tensor.dtype, tensor.tolist()) for tensor in tensors)]


def test_batches_are_the_same_from_any_number_of_workers_and_leave_the_random_state(dataset: Dataset) -> None:
    plan = [[0, 3], [6], [1, 2, 5], [4], [3], [0]]
    expected = [content(batch) for batch in batches_of(dataset, plan, 0)]
    assert [packs for packs, *_ in expected] == [tuple(f"pack {i}" for i in packs) for packs in plan]
    state = torch.get_rng_state()
    for workers in (1, 2, 4):
        assert [content(batch) for batch in batches_of(dataset, plan, workers)] == expected
    assert torch.equal(torch.get_rng_state(), state)


def test_fewer_requests_than_workers_and_none_at_all(dataset: Dataset) -> None:
    assert [batch.packs for batch in batches_of(dataset, [[5]], 3)] == [("pack 5",)]
    assert list(batches_of(dataset, [], 2)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_request_that_does_not_count_has_no_weight(dataset: Dataset, workers: int) -> None:
    requests = [request_of(dataset, 3, counts=counts) for counts in (True, False)]
    counted, padding = batches_of(dataset, iter(requests), workers)
    assert counted.weight > 0
    assert counted.digest > 0
    assert not padding.weights.any()
    assert (padding.weight, padding.digest) == (0, 0)
    assert torch.equal(padding.labels, counted.labels)


def test_an_endless_plan_is_read_only_as_far_as_it_is_used(dataset: Dataset) -> None:
    asked: list[int] = []

    def plan() -> Iterator[Request]:
        for i in count():
            asked.append(i)
            yield request_of(dataset, i % 7)

    loader = batches_of(dataset, plan(), 1)
    assert [batch.packs for batch in islice(loader, 10)] == [(f"pack {i % 7}",) for i in range(10)]
    del loader
    assert len(asked) < 20


@pytest.mark.parametrize("fault", ["shard", "image"])
def test_an_error_in_a_worker_is_the_error_that_the_trainer_would_have_had_itself(
    packs: list[Pack], tmp_path: Path, fault: str
) -> None:
    if fault == "image":
        damaged = packs[3].media_bytes[:100].ljust(len(packs[3].media_bytes), b"?")
        packs = [*packs[:3], replace(packs[3], media_bytes=damaged), *packs[4:]]
    dataset = open_dataset(write_shards(tmp_path / "shards", packs, PICTURE_MODEL, seq_len=4096))
    if fault == "shard":
        path = shard_of(dataset, 1)
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    kind, pack = (TrainError, 3) if fault == "image" else (DatasetError, 6)
    messages = []
    for workers in (0, 1):
        made: list[Batch] = []
        with pytest.raises(kind, match=f"pack {pack}") as caught:
            made.extend(batches_of(dataset, [[0], [1], [pack], [2]], workers))
        assert len(made) == 2
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("first", [[], [[0], [1], [2]]], ids=["at the first access", "after others"])
def test_a_missing_shard_is_an_error_at_once_each_time_it_is_asked_for(
    dataset: Dataset, first: list[list[int]]
) -> None:
    shard_of(dataset, 1).unlink()
    next(batches_of(dataset, [[0]], 1))  # the processes can be forked now
    for _ in range(2):
        made = list[Batch]()
        with pytest.raises(DatasetError, match=rf"{dataset.shards[1].name}: pack 4 .*No such file"):
            made.extend(batches_of(dataset, [*first, [4], [5], [0]], 2))
        assert len(made) == len(first)


class Signalled(Place):
    """A pack's place that sends a signal to the process that it is sent to."""

    name = signal.SIGKILL

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return signal.raise_signal, (self.name,)


class Stopped(Signalled):
    name = signal.SIGSTOP


def test_a_killed_worker_stops_the_run_at_once(dataset: Dataset) -> None:
    plan = [request_of(dataset, 0), Request((Signalled(0, 5, 0, 0, 0, 0),), True, ()), request_of(dataset, 1)]
    loader = batches_of(dataset, iter(plan), 1)
    next(loader)
    with pytest.raises(TrainError, match=r"a loader process died at pack 5 or soon after; .*lower data\.workers"):
        list(loader)


def test_a_worker_that_hangs_in_a_read_is_given_up_in_time_with_its_stack(dataset: Dataset) -> None:
    next(batches_of(dataset, [[0]], 1))
    shard = shard_of(dataset, 1)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(TrainError, match=r"a loader process has made nothing of pack 4, pack 6 for 5 s") as caught:
        list(batches_of(dataset, [[0], [4, 6], [1]], 2, stall_s=5))
    assert 'shards.py", line' in str(caught.value)
    assert "Thread" in str(caught.value)


def test_a_worker_that_was_stopped_is_given_up_in_time_and_ended(dataset: Dataset) -> None:
    next(batches_of(dataset, [[0]], 1))
    plan = [request_of(dataset, 0), Request((Stopped(0, 5, 0, 0, 0, 0),), True, ())]
    before = loader_processes()
    with pytest.raises(TrainError, match=r"made nothing of pack 5 for 5 s.*\n.*does not answer State:\s+T \(stopped\)"):
        list(batches_of(dataset, iter(plan), 1, stall_s=5))
    wait_for(lambda: loader_processes() <= before)


def loader_processes() -> set[int]:
    """The parent of this process's loaders, and those that it has now."""
    parents, serving = dict[int, int](), set[int]()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *_ = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        number = int(stat.parent.name)
        parents[number] = int(parent)
        if b"loader.serve" in command and state != "Z":
            serving.add(number)
    return {number for number in serving if os.getpid() in (parents[number], parents.get(parents[number]))}


def wait_for(holds: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_closed_loader_gives_back_its_processes_threads_and_files(dataset: Dataset) -> None:
    next(batches_of(dataset, [[0]], 1))
    wait_for(lambda: len(loader_processes()) == 1)
    files = open_files()
    loader = batches_of(dataset, [[0], [1], [2], [3], [4], [5], [6]], 3)
    next(loader)
    assert len(loader_processes()) == 4
    assert open_files() > files
    loader.close()  # type: ignore[attr-defined]
    assert open_files() == files
    wait_for(lambda: len(loader_processes()) == 1)


def test_workers_outlive_what_a_scheduler_sends_to_every_process(dataset: Dataset) -> None:
    loader = batches_of(dataset, [[i % 7] for i in range(20)], 1)
    next(loader)
    for process in loader_processes():
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            os.kill(process, name)
    assert len(list(loader)) == 19


def test_when_the_parent_of_the_workers_is_killed_that_is_said_and_the_next_loader_has_a_new_one(
    dataset: Dataset,
) -> None:
    next(batches_of(dataset, [[0]], 1))
    wait_for(lambda: len(loader_processes()) == 1)
    (parent,) = loader_processes()
    os.kill(parent, signal.SIGKILL)
    with pytest.raises(TrainError, match="loader process"):
        next(batches_of(dataset, [[0]], 1))
    assert next(batches_of(dataset, [[3]], 1)).packs == ("pack 3",)


ENDLESS = """
import pickle, sys
from itertools import repeat
from lmms.train.batch.loader import batches
reader, recipe, request = pickle.loads(sys.stdin.buffer.read())
loader = batches(reader, recipe, repeat(request), 2, 60)
next(loader)
print("loading", flush=True)
for batch in loader: pass
"""


@pytest.mark.parametrize("whole_group", [False, True])
def test_nothing_is_left_of_a_killed_trainer(dataset: Dataset, tmp_path: Path, whole_group: bool) -> None:
    """Its loaders hold its output open: reading that ends when the last of them has ended."""
    command = [sys.executable, "-c", ENDLESS]
    pipe, scratch = subprocess.PIPE, tmp_path / "scratch"
    scratch.mkdir()
    with subprocess.Popen(
        command,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    ) as trainer:
        assert trainer.stdin is not None
        assert trainer.stdout is not None
        trainer.stdin.write(pickle.dumps((PackReader([dataset]), recipe_of(dataset), request_of(dataset, 0))))
        trainer.stdin.close()
        assert trainer.stdout.readline() == b"loading\n"
        assert "/dev/shm" not in mapped_by_session(trainer.pid)
        (os.killpg if whole_group else os.kill)(trainer.pid, signal.SIGKILL)
        assert select.select([trainer.stdout], [], [], 600) == ([trainer.stdout], [], [])
        assert trainer.stdout.read() == b""
    assert list(scratch.iterdir()) == []


def mapped_by_session(session: int) -> str:
    """What the processes of a session have mapped, where a system tells."""
    maps = ""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(process.name)) == session:
                maps += (process / "maps").read_text()
    return maps
