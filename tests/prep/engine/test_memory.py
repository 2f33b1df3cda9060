"""The setting `memory`: what each process may hold, and what becomes of records that are too large for that."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from lmms.configs import PrepConfig
from lmms.configs.errors import BuildError, ConfigError
from lmms.configs.settings.prep import LEAST_MEMORY
from lmms.prep import build_shards
from lmms.prep.engine.memory import Shares, hold_to_share, may_start, shares_of, within_share
from lmms.prep.engine.processes import map_ordered
from lmms.prep.rows.chunk import Chunk, Packed, TarRow
from tests.kit.folders import shard_files, tiny_model_folder

SMALL = Shares(2, 400 * 2**20 + 8 * 1000)
"""Shares that leave room for records of 1000 bytes."""


def take(task: int) -> int:
    return len(bytes(task))


def halved(task: int, how: str, step: int | None) -> int:
    assert how == "ran out of memory (fewer workers need less)"
    return task // 2


def slept(task: int) -> tuple[float, float]:
    start = time.monotonic()
    time.sleep(0.2)
    return start, time.monotonic()


def all_are_there(folder: Path, workers: int) -> None:
    (folder / str(os.getpid())).touch()
    while len(list(folder.iterdir())) < workers:
        time.sleep(0.01)


def alone(under_way: Sequence[int], task: int) -> bool:
    return not under_way


def line(size: int, number: int) -> bytes:
    turns = [{"role": "user", "content": f"{number} "}, {"role": "assistant", "content": "yes " * (size // 4)}]
    return json.dumps({"messages": turns}).encode() + b"\n"


def build(folder: Path, out: str, **settings: int | None) -> Path:
    config = PrepConfig(
        sources=(str(folder / "a.jsonl"),),
        model=str(tiny_model_folder(folder)),
        seq_len=2**20,
        out=str(folder / out),
        max_rejects=1.0,
        **settings,  # type: ignore[arg-type]
    )
    build_shards(config)
    return folder / out


@pytest.mark.parametrize(
    ("memory", "workers", "expected"),
    [
        (None, 8, Shares(8)),
        (LEAST_MEMORY, 8, Shares(1, LEAST_MEMORY // 2)),
        (2 * LEAST_MEMORY, 8, Shares(3, LEAST_MEMORY // 2)),
        (2 * LEAST_MEMORY, 1, Shares(1, LEAST_MEMORY)),
    ],
)
def test_the_processes_share_the_memory(memory: int | None, workers: int, expected: Shares) -> None:
    assert shares_of(memory, workers) == expected
    assert (expected.record is None) == (memory is None)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone counts what a process holds")
def test_a_worker_that_takes_more_than_its_share_ends_and_its_task_is_tried_again() -> None:
    setup = partial(hold_to_share, 2**29)
    assert list(map_ordered(take, [3, 2**30, 5], 1, setup, str, halved)) == [3, 2**28, 5]


def test_large_chunks_wait_for_one_another() -> None:
    large, small = (0, Chunk(0, 0, [bytes(2000)], 0)), (1, Chunk(0, 1, [bytes(1000)], 0))
    assert may_start(SMALL, [], (0, Chunk(0, 0, [bytes(9000)], 0)))
    assert may_start(SMALL, [large], small)
    assert not may_start(SMALL, [large], large)
    assert may_start(Shares(2), [large] * 9, large)


def test_a_task_that_may_not_start_waits_until_it_may(tmp_path: Path) -> None:
    spans = list(map_ordered(slept, range(6), 3, partial(all_are_there, tmp_path, 3), str, may_start=alone))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_record_that_is_too_large_is_no_part_of_its_chunk() -> None:
    rows = [b"small", bytes(1001), b"small"]
    chunk = within_share(SMALL, Chunk(0, 7, rows, 0), "a")
    assert chunk.rows == [b"small", b"", b"small"]
    assert chunk.care is not None
    assert {row: (reject.reason, reject.message) for row, reject in chunk.care.lost.items()} == {
        8: (
            "record_memory",
            "the record has 1001 bytes; the setting memory leaves room for records of 1000 bytes; set more memory, or"
            " fewer workers",
        )
    }
    many = Chunk(0, 0, [bytes(600)] * 3, 0)
    assert within_share(SMALL, many, "a") is many
    of_tar = within_share(SMALL, Chunk(0, 0, [TarRow("k", media={"jpg": bytes(1001)})], 0), "a")
    assert of_tar.care is not None
    table = within_share(SMALL, Chunk(0, 3, Packed(bytes(1001), 1), 0), "a")
    assert table.care is not None
    assert list(table.care.lost) == [3]
    assert within_share(Shares(2), Chunk(0, 7, rows, 0), "a").rows is rows
    with pytest.raises(BuildError, match=r"rows 3 to 6 of a take 1001 bytes together; the setting memory leaves"):
        within_share(SMALL, Chunk(0, 3, Packed(bytes(1001), 4), 0), "a")


def test_a_build_rejects_what_its_memory_has_no_room_for_and_packs_the_rest(tmp_path: Path) -> None:
    small = b"".join(line(100, number) for number in range(40))
    (tmp_path / "a.jsonl").write_bytes(small + line(2**25, 40) + small)
    out = build(tmp_path, "bound", memory=LEAST_MEMORY, workers=4)
    rejects = pl.read_parquet(out / "rejects.parquet")
    assert rejects.select("row", "reason").rows() == [(40, "record_memory")]
    assert pl.read_parquet(out / "samples.parquet").height == 80
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY  # of this process


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone counts what a process holds")
def test_a_build_in_bounded_memory_gives_the_same_bytes_and_no_process_holds_more_than_its_share(
    tmp_path: Path,
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(line(2**19, number) for number in range(96)))
    whole = build(tmp_path, "whole", workers=1)
    program = (
        "import re, resource, sys; from pathlib import Path; from tests.prep.engine.test_memory import build\n"
        "build(Path(sys.argv[1]), 'bound', memory=int(sys.argv[2]), workers=3)\n"
        "most = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(most, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(LEAST_MEMORY)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert shard_files(tmp_path / "bound") == shard_files(whole)
    assert max(map(int, ended.stdout.split())) * 1024 < LEAST_MEMORY // 2


@pytest.mark.parametrize("settings", [{"workers": 0}, {"engine": "ray", "workers": 2}])
def test_memory_is_for_processes_of_this_machine(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="memory bounds the processes of engine local: expected that engine"):
        PrepConfig(sources=(), model="m", seq_len=8, out="o", memory=LEAST_MEMORY, **settings)  # type: ignore[arg-type]
