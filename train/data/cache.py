"""Files of remote data sets on this node's disk, under a limit, for all processes and runs of the node.

    HASH-SHARD.lmms-cache        a shard, or a table; HASH is the hash of the data set's index, so data sets never mix
    HASH-SHARD.BYTES.lmms-part/  a file that is being fetched; its bytes count towards the limit from the start

A shard in the cache is whole and checked. A shard may be deleted while a process reads it: an open file stays readable.
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
"""Seconds to which the time of a file's last use is exact."""


class _File(NamedTuple):
    """A file of a data set that enters the cache."""

    name: str
    bytes: int
    xxh3: str
    named_by: str
    """The file that names this file's hash, for messages."""


def cached_name(dataset: Dataset, shard: int) -> str:
    """The file of a shard in a cache."""
    return _name(dataset, dataset.shards[shard].name)


def need_of(datasets: Sequence[Dataset], upcoming: Sequence[tuple[int, int]] = ()) -> Need:
    """What a run with these data sets needs, all of these shards later than the shard that is to be fetched.

    upcoming: (set, shard) in order of next use.
    """
    far = [cached_name(datasets[number], shard) for number, shard in upcoming]
    return Need(frozenset(dataset.index_hash for dataset in datasets), far=far)


def read_shard(dataset: Dataset, shard: int, offset: int, size: int) -> bytes:
    """Some bytes of a shard, not checked, from the cache or else from its store; fewer where the shard ends before."""
    data = read_cached(dataset, shard, offset, size)
    return dataset.store.read_range(dataset.shards[shard].name, offset, size) if data is None else data


def read_cached(dataset: Dataset, shard: int, offset: int, size: int) -> bytes | None:
    """Some bytes of a shard in the cache, not checked; None if the shard is not there. A file whose size is not the
    shard's is removed."""
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
    """A table of a data set, not checked; through the cache where the cache has room: one fetch for a whole node.

    DatasetError where the table cannot be read, or does not arrive as the manifest names it.
    """
    entry = dataset.manifest.files[name]
    if dataset.cache is None or entry["bytes"] > dataset.cache.limit_bytes:
        return dataset.store.read(name)
    path = dataset.cache.folder / _name(dataset, name)
    table = _File(name, entry["bytes"], entry["xxh3"], "the manifest")
    while _fetch(dataset, table, need_of([dataset])):
        with suppress(FileNotFoundError):  # another process still fetches the file, or evicted it just now
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
    """Delete a damaged shard from the cache, if the shard is there."""
    if dataset.cache:
        (dataset.cache.folder / cached_name(dataset, shard)).unlink(missing_ok=True)


def fetch(dataset: Dataset, shard: int, need: Need, go_on: Callable[[], bool] = lambda: True) -> bool:
    """Bring a shard into the cache. False means that there is no room for the shard, or that go_on stopped the fetch.

    A shard that is there already, or that another process fetches, is True at once. go_on: called after every few MB;
    False stops the fetch. DatasetError where the store does not give what the index names, or the disk does not take
    the shard.
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
    """Fetch a file to `path`, a second time if it does not arrive as it was written; False if go_on stopped this."""
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
