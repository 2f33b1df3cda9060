"""Files of remote data sets on this node's disk, under a limit, for all processes and runs of the node.

    HASH-SHARD.lmms-cache        a shard, or a table; HASH is that of the index it belongs to, so other data sets never
                                 mix with it
    HASH-SHARD.BYTES.lmms-part/  a file that is being fetched, and has this much of the limit from the start

A shard is there whole and checked or not at all. It may go while it is read: an open file stays readable.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from lmms.configs.contract.manifest import Dataset, data_entry
from lmms.configs.errors import DatasetError
from lmms.configs.stores.store import read_blocks
from lmms.train.data.cache_room import ENDING, Need, claimed, locked

_POLL_S = 0.05
_TOUCH_S = 60.0
"""To which the time of a file's last use is kept."""


class _File(NamedTuple):
    """A file of a data set that enters the cache."""

    name: str
    bytes: int
    xxh3: str
    named_by: str
    """What names its hash, for messages."""


def cached_name(dataset: Dataset, shard: int) -> str:
    """The file of a shard in a cache."""
    return _name(dataset, dataset.shards[shard].name)


def need_of(datasets: Sequence[Dataset], upcoming: Sequence[tuple[int, int]] = ()) -> Need:
    """What a run with these data sets needs, all of it later than what is to be fetched.

    upcoming: (set, shard) in order of next use.
    """
    far = [cached_name(datasets[number], shard) for number, shard in upcoming]
    return Need(frozenset(dataset.index_hash for dataset in datasets), far=far)


def read_shard(dataset: Dataset, shard: int, offset: int, size: int) -> bytes:
    """Some bytes of a shard, not checked; fewer where it ends before: out of the cache, or else where it is."""
    data = read_cached(dataset, shard, offset, size)
    return dataset.store.read_range(dataset.shards[shard].name, offset, size) if data is None else data


def read_cached(dataset: Dataset, shard: int, offset: int, size: int) -> bytes | None:
    """Some bytes of a shard in the cache, not checked; None if it is not there. A file of another size than the shard's
    is removed."""
    if dataset.cache is None:
        return None
    path = dataset.cache.folder / cached_name(dataset, shard)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(file)
        if status.st_size != dataset.shards[shard].bytes:
            path.unlink(missing_ok=True)
            return None
        if time.time() - status.st_mtime > _TOUCH_S:
            os.utime(file)
        return os.pread(file, size, offset)
    finally:
        os.close(file)


def read_table_file(dataset: Dataset, name: str) -> bytes:
    """A table of a data set, not checked; through the cache, where that has room for it: one fetch for all of a node.

    DatasetError where it cannot be had, or does not arrive as the manifest names it.
    """
    entry = dataset.manifest.files[name]
    if dataset.cache is None or entry["bytes"] > dataset.cache.limit_bytes:
        return dataset.store.read(name)
    path = dataset.cache.folder / _name(dataset, name)
    table = _File(name, entry["bytes"], entry["xxh3"], "the manifest")
    while _fetch(dataset, table, need_of([dataset])):
        with suppress(FileNotFoundError):  # another process still fetches it, or it was evicted just now
            data = path.read_bytes()
            if data_entry(data) == entry:
                return data
            path.unlink(missing_ok=True)
        time.sleep(_POLL_S)
    return dataset.store.read(name)


def is_missing(dataset: Dataset, shard: int) -> bool:
    """Whether a shard could be in the cache, but is not."""
    return dataset.cache is not None and not (dataset.cache.folder / cached_name(dataset, shard)).exists()


def forget(dataset: Dataset, shard: int) -> None:
    """Take a shard that is damaged out of the cache, if it is there."""
    if dataset.cache:
        (dataset.cache.folder / cached_name(dataset, shard)).unlink(missing_ok=True)


def fetch(dataset: Dataset, shard: int, need: Need, go_on: Callable[[], bool] = lambda: True) -> bool:
    """Bring a shard into the cache. False means that there is no room for it, or that it was given up.

    A shard that is there already, or that another process fetches, is True at once. go_on: asked after each few MB,
    False gives up. DatasetError where the store does not give what the index names, or the disk does not take it.
    """
    named = dataset.shards[shard]
    return _fetch(dataset, _File(named.name, named.bytes, named.xxh3, "its index"), need, go_on)


def _fetch(dataset: Dataset, file: _File, need: Need, go_on: Callable[[], bool] = lambda: True) -> bool:
    assert dataset.cache
    folder, name = dataset.cache.folder, _name(dataset, file.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with claimed(dataset.cache, name, file.bytes, need) as claim:
            if claim.part is None:
                return claim.has_room
            if not _download(dataset, file, claim.part / "data", go_on):
                return False
            with locked(folder):
                (claim.part / "data").rename(folder / name)
                shutil.rmtree(claim.part)
    except OSError as error:
        raise DatasetError(
            f"{dataset.where}/{file.name} cannot be kept in {folder} ({error.strerror});"
            " free space there, set another data.cache, or a lower data.cache_gb"
        ) from error
    return True


def _download(dataset: Dataset, file: _File, path: Path, go_on: Callable[[], bool]) -> bool:
    """Fetch a file to `path`, a second time if it does not arrive as it was written; False if that was given up."""
    for _ in range(2):
        with path.open("wb") as out:
            for block in read_blocks(dataset.store, file.name, file.bytes):
                out.write(block)
                if not go_on():
                    return False
        with path.open("rb") as data:
            digest = hashlib.file_digest(data, xxhash.xxh3_64).hexdigest()
            size = data.tell()
        if (size, digest) == (file.bytes, file.xxh3):
            return True
    is_short = size != file.bytes
    what = f"has {size} bytes, expected {file.bytes}" if is_short else f"does not have the hash of {file.named_by}"
    raise DatasetError(f"{dataset.where}/{file.name} {what}: truncated or damaged; copy it again or rebuild")


def _name(dataset: Dataset, file: str) -> str:
    return f"{dataset.index_hash}-{file}{ENDING}"
