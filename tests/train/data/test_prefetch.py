"""Reading through the cache: nothing waits for it, nothing damaged comes out of it, and it outlives its server."""

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.contract.manifest import PACKS_NAME, Dataset, data_entry, open_dataset
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import ConfigError, DatasetError
from lmms.configs.stores.store import Cache
from lmms.train.data import prefetch
from lmms.train.data.cache import cached_name, fetch, need_of
from lmms.train.data.prefetch import cache_keeper
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.stores.served import all_packs, all_same, requests, same, shard_path
from tests.kit.stores.servers import Server

BOTH = ((0, 1), (0, 0))


@pytest.fixture
def dataset(web: tuple[Server, str], tmp_path: Path) -> Dataset:
    """With a cache that has room for it."""
    return open_dataset(web[1], cache=Cache(tmp_path / "cache", 10**9), retry_s=0.5)


def cached(dataset: Dataset, shard: int) -> Path:
    assert dataset.cache
    return dataset.cache.folder / cached_name(dataset, shard)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(dataset: Dataset) -> None:
    for shard in (0, 1):
        assert fetch(dataset, shard, need_of([dataset]))


def test_a_shard_that_is_not_there_yet_is_read_where_it_is(dataset: Dataset, packs: list[Pack], root: Path) -> None:
    requests(root)
    assert all_same(all_packs(dataset), packs)
    assert requests(root).count("shard.00001.mds") == 4
    assert dataset.cache
    assert [path.name for path in dataset.cache.folder.iterdir()] == [f"{dataset.index_hash}-{PACKS_NAME}.lmms-cache"]


def test_the_shards_ahead_are_fetched_once_and_outlive_the_server(
    dataset: Dataset, packs: list[Pack], root: Path, web: tuple[Server, str]
) -> None:
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    requests(root)
    with cache_keeper([dataset]) as want:
        want(BOTH)
        wait_for(lambda: cached(dataset, 0).exists() and cached(dataset, 1).exists())
        want(BOTH)
    assert requests(root) == ["shard.00001.mds", "shard.00000.mds"]
    web[0].kill()
    assert all(same(reader.read(sidecar.place(i)), packs[i]) for i in range(8))


def test_a_sidecar_is_fetched_once_for_all_readers_of_a_node(
    dataset: Dataset, root: Path, packs: list[Pack], web: tuple[Server, str]
) -> None:
    requests(root)
    tokens = [read_sidecar(dataset).tokens.tolist() for _ in range(3)]
    assert tokens == [[len(pack.input_ids) for pack in packs]] * 3
    assert requests(root) == [PACKS_NAME]
    assert dataset.cache
    (kept,) = dataset.cache.folder.iterdir()
    flip(kept)
    read_sidecar(dataset)
    assert requests(root) == [PACKS_NAME]
    assert data_entry(kept.read_bytes()) == dataset.manifest.files[PACKS_NAME]
    small = replace(dataset, cache=Cache(dataset.cache.folder, dataset.manifest.files[PACKS_NAME]["bytes"] - 1))
    read_sidecar(small)
    assert PACKS_NAME in requests(root)


def test_readers_that_start_together_fetch_a_sidecar_once(dataset: Dataset, root: Path) -> None:
    requests(root)
    with ThreadPoolExecutor(4) as pool:
        tables = [pool.submit(read_sidecar, dataset) for _ in range(4)]
    assert {tuple(table.result().tokens.tolist()) for table in tables} == {tuple(read_sidecar(dataset).tokens.tolist())}
    assert requests(root) == [PACKS_NAME]


def test_a_sidecar_for_which_fetches_leave_no_room_is_read_where_it_is(
    web: tuple[Server, str], root: Path, tmp_path: Path
) -> None:
    largest = max(range(2), key=lambda number: shard_path(root, number).stat().st_size)
    room = Cache(tmp_path / "cache", shard_path(root, largest).stat().st_size)
    dataset = open_dataset(web[1], cache=room)
    began, end = threading.Event(), threading.Event()

    def go_on() -> bool:
        began.set()
        return end.wait(600)

    fetching = threading.Thread(target=fetch, args=(dataset, largest, need_of([dataset]), go_on))
    fetching.start()
    assert began.wait(600)
    try:
        requests(root)
        assert len(read_sidecar(dataset)) == 8
        assert requests(root) == [PACKS_NAME]
    finally:
        end.set()
        fetching.join()
    assert [path.name for path in room.folder.iterdir()] == [cached_name(dataset, largest)]


def test_a_newer_list_takes_the_place_of_the_older(dataset: Dataset, root: Path) -> None:
    with cache_keeper([dataset]) as want:
        for _ in range(100):
            want(())
        want(((0, 1),))
        wait_for(cached(dataset, 1).exists)
    assert not cached(dataset, 0).exists()


def test_a_cache_that_is_full_is_asked_once_for_each_new_list(
    web: tuple[Server, str], root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is needed later than a shard without room has none either, and nobody looks again before a newer list."""
    room = max(shard_path(root, number).stat().st_size for number in (0, 1))
    full = open_dataset(web[1], cache=Cache(tmp_path / "cache", room))
    asked: list[int] = []

    def counted(dataset: Dataset, shard: int, *arguments: Any, **named: Any) -> bool:
        asked.append(shard)
        return fetch(dataset, shard, *arguments, **named)

    monkeypatch.setattr(prefetch, "fetch", counted)
    upcoming = ((0, 1), (0, 0), (0, 0), (0, 0))
    with cache_keeper([full]) as want:
        for _ in range(20):
            want(upcoming)
        wait_for(cached(full, 1).exists)
        wait_for(lambda: len(asked) >= 2)
        time.sleep(0.2)
        assert asked == [1, 0]
        want(((0, 1), (0, 0)))
        wait_for(lambda: len(asked) >= 3)
    assert asked == [1, 0, 0]


def test_what_another_fetches_does_not_end_the_list(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    began, end = threading.Event(), threading.Event()

    def go_on() -> bool:
        began.set()
        return end.wait(600)

    other = threading.Thread(target=fetch, args=(dataset, 1, need_of([dataset]), go_on))
    other.start()
    assert began.wait(600)
    with cache_keeper([dataset]) as want:
        want(BOTH)
        wait_for(cached(dataset, 0).exists)
        assert not cached(dataset, 1).exists()
        end.set()
    other.join()


def test_what_stops_the_keeper_is_raised_in_the_trainer(dataset: Dataset, root: Path) -> None:
    shard_path(root, 0).unlink()

    with cache_keeper([dataset]) as want:
        found: list[str] = []

        def stopped() -> bool:
            try:
                want(BOTH)
            except DatasetError as error:
                found.append(str(error))
            return bool(found)

        wait_for(stopped)
    assert found[0].startswith(f"{dataset.where}/shard.00000.mds is missing")
    assert cached(dataset, 1).exists()


def test_data_sets_of_this_node_are_not_cached(web: tuple[Server, str], root: Path, tmp_path: Path) -> None:
    """A mixture of a local and a far set, the local one first."""
    cache = Cache(tmp_path / "cache", 10**9)
    local, far = (open_dataset(where, cache=cache) for where in (root / "shards", web[1]))
    assert local.cache is None
    with cache_keeper([local, far]) as want:
        want(((0, 0), (0, 1), (1, 0)))
        wait_for(cached(far, 0).exists)
    assert [path.name for path in cache.folder.iterdir()] == [cached_name(far, 0)]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: os.truncate(path, 10_000),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(path.read_bytes() + b"more"),
        lambda path: path.unlink(),
    ],
    ids=["flipped bit", "truncated", "empty", "too long", "missing"],
)
def test_a_cached_shard_that_was_damaged_is_read_again_where_it_is(
    damage: Callable[[Path], None], dataset: Dataset, packs: list[Pack], web: tuple[Server, str]
) -> None:
    """Also by the run after: a damaged file does not stay in the cache. Without the server it is an error."""
    sidecar = read_sidecar(dataset)
    fill(dataset)
    damage(cached(dataset, 0))
    assert all_same(all_packs(dataset), packs)
    assert not cached(dataset, 0).exists()
    fill(dataset)
    damage(cached(dataset, 0))
    web[0].kill()
    reader = PackReader([dataset])
    with pytest.raises(DatasetError, match=rf"^{dataset.where}/shard\.00000\.mds cannot be read: .*tried for 0\.5 s"):
        [reader.read(sidecar.place(i)) for i in range(4)]
    assert same(reader.read(sidecar.place(5)), packs[5])


def test_a_shard_damaged_where_it_is_does_not_enter_the_cache(dataset: Dataset, root: Path) -> None:
    """Not even where it holds no pack, as in the table of offsets, which readers do not use."""
    data = bytearray(shard_path(root, 0).read_bytes())
    data[9] ^= 1
    shard_path(root, 0).write_bytes(data)
    with pytest.raises(DatasetError, match=rf"^{dataset.where}/shard\.00000\.mds does not have the hash of its index"):
        fill(dataset)
    assert not cached(dataset, 0).exists()


def test_a_shard_damaged_on_its_way_is_fetched_again(dataset: Dataset, root: Path) -> None:
    (root / "faults").write_text("damage")
    fill(dataset)
    assert not (root / "faults").exists()
    assert cached(dataset, 0).read_bytes() == shard_path(root, 0).read_bytes()


def test_a_cache_with_no_room_for_a_shard_is_refused(web: tuple[Server, str], root: Path, tmp_path: Path) -> None:
    largest = max(shard_path(root, number).stat().st_size for number in (0, 1))
    open_dataset(web[1], cache=Cache(tmp_path, largest))
    open_dataset(root / "shards", cache=Cache(tmp_path, 0))
    with pytest.raises(ConfigError, match=rf"data\.cache_gb allows {largest - 1:,} bytes, but a shard of {web[1]} has"):
        open_dataset(web[1], cache=Cache(tmp_path, largest - 1))


TRAIN = """
import pickle, random, sys
from lmms.train.data.prefetch import cache_keeper
from lmms.train.data.shards import PackReader, read_sidecar
dataset, seed = pickle.load(sys.stdin.buffer)
sidecar, reader = read_sidecar(dataset), PackReader([dataset])
order = list(range(8)) * 6
random.Random(seed).shuffle(order)
with cache_keeper([dataset]) as want:
    for i, pack in enumerate(order):
        want(tuple(dict.fromkeys((0, sidecar.place(later).shard) for later in order[i:])))
        reader.read(sidecar.place(pack))
"""


def test_training_and_evaluation_use_a_cache_for_one_shard_at_once(
    web: tuple[Server, str], root: Path, tmp_path: Path
) -> None:
    room = max(shard_path(root, number).stat().st_size for number in (0, 1))
    dataset = open_dataset(web[1], cache=Cache(tmp_path / "cache", room))
    runs = [subprocess.Popen([sys.executable, "-c", TRAIN], stdin=subprocess.PIPE) for _ in range(2)]
    for seed, run in enumerate(runs):
        assert run.stdin
        run.stdin.write(pickle.dumps((dataset, seed)))
        run.stdin.close()
    assert [run.wait(600) for run in runs] == [0, 0]
    left = list((tmp_path / "cache").iterdir())
    assert sum(path.stat().st_size for path in left) <= room
    assert {path.suffix for path in left} <= {".lmms-cache"}
