"""The cache of shards: whole or not there, one fetch for all, the limit at every moment, and nothing left behind."""

import fcntl
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash

from lmms.configs.contract.manifest import Dataset, Manifest
from lmms.configs.contract.mds import INDEX_NAME, ShardFile
from lmms.configs.contract.pack import COLUMNS, CONTRACT_VERSION
from lmms.configs.errors import DatasetError
from lmms.configs.stores.store import Cache, LocalStore
from lmms.train.data.cache import Need, cached_name, fetch, forget, need_of, read_cached, to_evict

SIZE = 10_000
NOTHING = Need(frozenset())


def make_dataset(folder: Path, room: int, shards: int = 6, seed: int = 0) -> Dataset:
    """Shards of SIZE random bytes, treated as if they were far away, and a cache with room for so many of them."""
    rng, files = np.random.default_rng(seed), []
    (folder / f"{seed}").mkdir(parents=True)
    for i in range(shards):
        data = rng.bytes(SIZE)
        (folder / f"{seed}" / f"shard.{i:05}.mds").write_bytes(data)
        files.append(ShardFile(f"shard.{i:05}.mds", SIZE, 1, xxhash.xxh3_64_hexdigest(data), tuple(COLUMNS.items())))
    manifest = Manifest(
        contract=CONTRACT_VERSION,
        family="qwen2",
        model="",
        seq_len=1,
        max_patches=0,
        image_token_id=None,
        vision=None,
        packing="",
        fingerprints={},
        counts={},
        rejects={},
        notes={},
        sources=(),
        settings={},
        files={INDEX_NAME: {"bytes": 1, "xxh3": f"{seed:016x}"}},
    )
    return Dataset(LocalStore(folder / f"{seed}"), manifest, tuple(files), Cache(folder / "cache", room * SIZE))


def source(dataset: Dataset, shard: int) -> Path:
    return Path(dataset.where) / dataset.shards[shard].name


def cache_of(dataset: Dataset) -> Path:
    assert dataset.cache
    return dataset.cache.folder


def in_cache(dataset: Dataset) -> list[int]:
    """The shards that are in the cache; nothing but whole shards may be there."""
    files = {path.name: path for path in cache_of(dataset).iterdir()}
    found = [i for i in range(len(dataset.shards)) if files.pop(cached_name(dataset, i), None)]
    assert files == {}
    return found


def test_a_fetched_shard_is_the_one_that_was_written_and_all_that_is_there(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=6)
    assert read_cached(dataset, 2, 0, SIZE) is None
    assert fetch(dataset, 2, NOTHING)
    assert in_cache(dataset) == [2]
    assert read_cached(dataset, 2, 0, SIZE) == source(dataset, 2).read_bytes()
    assert read_cached(dataset, 2, 5, 7) == source(dataset, 2).read_bytes()[5:12]
    source(dataset, 2).unlink()
    assert fetch(dataset, 2, NOTHING)


FILES = {"a-0": (10, 3.0), "a-1": (10, 1.0), "a-2": (10, 2.0), "b-0": (10, 0.0), "b-1": (10, 4.0), "a-3": (5, 9.0)}


@pytest.mark.parametrize(
    ("size", "near", "far", "gone"),
    [
        (0, "", "", []),
        (1, "", "", ["a-1"]),
        (21, "", "", ["a-1", "a-2", "a-0"]),
        (31, "", "", ["a-1", "a-2", "a-0", "a-3"]),
        (36, "", "", ["a-1", "a-2", "a-0", "a-3", "b-0"]),
        (50, "a-1", "", None),
        (45, "a-1", "", ["a-2", "a-0", "a-3", "b-0", "b-1"]),
        (30, "a-0 a-2", "a-1 a-3", ["b-0", "b-1", "a-3", "a-1"]),
        (21, "", "a-0 a-1 a-2 a-3", ["b-0", "b-1", "a-3"]),
        (36, "", "a-9 a-0 a-1 a-2 a-3", ["b-0", "b-1", "a-3", "a-2", "a-1"]),
        (56, "", "", None),
        (41, "", "a-0 a-1 a-0 a-2 a-3 a-1", ["b-0", "b-1", "a-3", "a-2", "a-1"]),
        (31, "a-1", "a-0 a-2 a-3 a-1", ["b-0", "b-1", "a-3", "a-2"]),
    ],
)
def test_what_goes_first(size: int, near: str, far: str, gone: list[str] | None) -> None:
    """Own shards not needed, then others', each by last use; then the last that is needed. What is near stays."""
    assert to_evict(FILES, size, Need(frozenset({"a"}), near.split(), far.split())) == gone


def test_the_limit_holds_and_what_is_needed_next_stays(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=3)
    order = [(0, i) for i in (4, 1, 5, 0, 2, 3)]
    for i in range(6):
        for later in order[i + 1 : i + 3]:
            assert fetch(dataset, later[1], need_of([dataset], order[i:]))
        assert fetch(dataset, order[i][1], need_of([dataset], order[i:]))
        assert len(in_cache(dataset)) <= 3
        assert {shard for _, shard in order[i : i + 3]} <= set(in_cache(dataset))


def test_a_lower_limit_is_kept_from_the_next_fetch_on(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=6)
    for shard in range(5):
        fetch(dataset, shard, NOTHING)
    assert fetch(replace(dataset, cache=Cache(cache_of(dataset), 2 * SIZE + 1)), 5, NOTHING)
    assert len(in_cache(dataset)) == 2


def test_data_sets_with_shards_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    one, two = make_dataset(tmp_path, room=12, seed=1), make_dataset(tmp_path, room=12, seed=2)
    fetch(one, 0, NOTHING)
    assert read_cached(two, 0, 0, SIZE) is None
    fetch(two, 0, NOTHING)
    assert read_cached(one, 0, 0, SIZE) == source(one, 0).read_bytes()
    assert read_cached(two, 0, 0, SIZE) == source(two, 0).read_bytes()


def test_files_of_others_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=1)
    cache_of(dataset).mkdir()
    (cache_of(dataset) / "thesis.tex").write_bytes(bytes(3 * SIZE))
    assert fetch(dataset, 0, NOTHING)
    assert fetch(dataset, 1, NOTHING)
    (cache_of(dataset) / "thesis.tex").unlink()
    assert in_cache(dataset) == [1]


def test_a_shard_that_is_read_may_go(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=1)
    fetch(dataset, 0, NOTHING)
    with (cache_of(dataset) / cached_name(dataset, 0)).open("rb") as reading:
        assert fetch(dataset, 1, NOTHING)
        assert reading.read() == source(dataset, 0).read_bytes()
    assert in_cache(dataset) == [1]


def test_the_time_of_use_is_kept(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=2)
    for shard, used in ((0, 1000), (1, 2000)):
        fetch(dataset, shard, NOTHING)
        os.utime(cache_of(dataset) / cached_name(dataset, shard), (used, used))
    read_cached(dataset, 0, 0, 1)
    fetch(dataset, 2, NOTHING)
    assert in_cache(dataset) == [0, 2]


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1])
def test_a_file_of_another_size_is_not_in_the_cache(tmp_path: Path, size: int) -> None:
    dataset = make_dataset(tmp_path, room=2)
    fetch(dataset, 0, NOTHING)
    os.truncate(cache_of(dataset) / cached_name(dataset, 0), size)
    assert read_cached(dataset, 0, 0, 1) is None
    assert in_cache(dataset) == []


def test_a_forgotten_shard_is_fetched_again(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=2)
    fetch(dataset, 0, NOTHING)
    for _ in range(2):
        forget(dataset, 0)
        assert in_cache(dataset) == []
    assert fetch(dataset, 0, NOTHING)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "does not have the hash of its index"),
        (lambda data: data[:-1], f"has {SIZE - 1} bytes, expected {SIZE}: truncated"),
        (lambda data: b"", f"has 0 bytes, expected {SIZE}: truncated"),
        (None, "is missing"),
    ],
    ids=["flipped bit", "truncated", "empty", "missing"],
)
def test_a_damaged_shard_is_named_each_time_and_never_enters_the_cache(tmp_path: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    dataset = make_dataset(tmp_path, room=2)
    path = source(dataset, 1)
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    for _ in range(2):
        with pytest.raises(DatasetError, match=f"^{path}.*{message}"):
            fetch(dataset, 1, NOTHING)
        assert in_cache(dataset) == []
    assert fetch(dataset, 0, NOTHING)


def test_a_disk_that_does_not_take_it_is_named(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=2)
    cache_of(dataset).write_text("a file, no folder")
    with pytest.raises(DatasetError, match=rf"cannot be kept in {cache_of(dataset)} \(File exists\).*data\.cache"):
        fetch(dataset, 0, NOTHING)


@contextmanager
def fetching(dataset: Dataset, shard: int) -> Iterator[threading.Event]:
    """Another thread is fetching the shard, as another process would be, until the event is set."""
    began, end = threading.Event(), threading.Event()

    def go_on() -> bool:
        began.set()
        return end.wait(600)

    thread = threading.Thread(target=fetch, args=(dataset, shard, NOTHING), kwargs={"go_on": go_on})
    thread.start()
    assert began.wait(600)
    try:
        yield end
    finally:
        end.set()
        thread.join()


def test_what_another_fetches_is_waited_for_or_left_to_it(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=2)
    with fetching(dataset, 0) as end:
        assert fetch(dataset, 0, NOTHING, wait=False)
        assert not (cache_of(dataset) / cached_name(dataset, 0)).exists()
        threading.Timer(0.2, end.set).start()
        assert fetch(dataset, 0, NOTHING)
    assert in_cache(dataset) == [0]


def test_a_fetch_has_its_room_from_the_start(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=2)
    fetch(dataset, 1, NOTHING)
    with fetching(dataset, 0) as end:
        assert fetch(dataset, 2, NOTHING, wait=False)
        assert not (cache_of(dataset) / cached_name(dataset, 1)).exists()
        assert not fetch(dataset, 3, Need(frozenset(), near=[cached_name(dataset, 2)]), wait=False)
        threading.Timer(0.2, end.set).start()
        assert fetch(dataset, 3, Need(frozenset(), near=[cached_name(dataset, 2)]))
    assert in_cache(dataset) == [2, 3]


def test_a_fetch_that_was_given_up_leaves_nothing(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, room=2)
    assert not fetch(dataset, 0, NOTHING, go_on=lambda: False)
    assert in_cache(dataset) == []


KILLED = """
import os, pickle, signal, sys
from lmms.train.data.cache import Need, fetch
dataset = pickle.load(sys.stdin.buffer)
fetch(dataset, 0, Need(frozenset()), go_on=lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize("following", [0, 1])
def test_what_a_killed_process_leaves_is_a_part_that_the_next_removes(tmp_path: Path, following: int) -> None:
    dataset = make_dataset(tmp_path, room=1)
    run = subprocess.run([sys.executable, "-c", KILLED], input=pickle.dumps(dataset))
    assert run.returncode == -signal.SIGKILL
    assert [path.suffix for path in cache_of(dataset).iterdir()] == [".lmms-part"]
    assert fetch(dataset, following, NOTHING, wait=False)
    assert in_cache(dataset) == [following]


BUSY = """
import pickle, random, sys, time
from pathlib import Path
from lmms.train.data.cache import cached_name, fetch, need_of, read_cached
datasets, seed = pickle.load(sys.stdin.buffer)
order = [(n, i) for n in range(len(datasets)) for i in range(6)] * 8
random.Random(seed).shuffle(order)
for at, (n, i) in enumerate(order):
    data = None
    while data is None:
        fetch(datasets[n], i, need_of(datasets, order[at:at + 4]), go_on=lambda: time.sleep(0.002) or True)
        data = read_cached(datasets[n], i, 0, 10**9)
    assert data == Path(datasets[n].where, datasets[n].shards[i].name).read_bytes()
"""


def usage(folder: Path) -> int:
    """Bytes of all files of the cache now: with its lock, so that none comes or goes while they are counted."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    os.close(descriptor)
    return total


@pytest.mark.parametrize("room", [2, 5])
def test_several_processes_and_runs_share_a_cache_at_once(tmp_path: Path, room: int) -> None:
    """Two of one run and one of another, which shares a data set with it: each gets every shard, under the limit."""
    sets = [make_dataset(tmp_path, room, seed=seed) for seed in range(3)]
    cache_of(sets[0]).mkdir()
    processes = []
    for seed, datasets in enumerate((sets[:2], sets[:2], sets[1:])):
        process = subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE)
        assert process.stdin
        process.stdin.write(pickle.dumps((datasets, seed)))
        process.stdin.close()
        processes.append(process)
    most = 0
    while any(process.poll() is None for process in processes):
        most = max(most, usage(cache_of(sets[0])))
        time.sleep(0.001)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert SIZE < most <= room * SIZE
    assert not list(cache_of(sets[0]).glob("*.lmms-part"))
