"""Whole files of remote data sets on this node's disk, under a limit, for all processes and runs of the node.

    HASH-SHARD.lmms-cache        a shard, or a table; HASH is that of the index it belongs to, so other data sets never
                                 mix with it
    HASH-SHARD.BYTES.lmms-part/  one that is being fetched, and has this much of the limit from the start

Two locks, which go with the process that holds them: on the cache folder while room is made, on the part while it is
fetched. So of all processes one fetches a shard, and what a killed one leaves is a part, which the next one removes. A
shard is there whole and checked or not at all. It may go while it is read: an open file stays readable.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import xxhash

from lmms.configs.contract.manifest import Dataset, data_entry
from lmms.configs.errors import DatasetError
from lmms.configs.stores.remote import FileStore
from lmms.configs.stores.store import Cache, read_blocks


@dataclass(frozen=True, slots=True)
class Need:
    """What a run will read, by the names of cached shards: for the choice of what may go."""

    hashes: frozenset[str]
    """Of the indexes of its data sets; shards of these that are neither near nor far are not needed soon."""
    near: Sequence[str] = ()
    """Needed before the shard that is to be fetched: they stay."""
    far: Sequence[str] = ()
    """Needed after it, in order: the last of them goes first, when nothing else is left."""


def to_evict(files: Mapping[str, tuple[int, float]], size: int, need: Need) -> list[str] | None:
    """Which of these files, name -> (bytes, time of use), go to free `size` bytes; None if too few may go.

    First shards of the run's own data sets that it does not need soon, then those of others, the longest unused first;
    then those that it needs last.
    """
    near = frozenset(need.near)
    # Two data sets of a run may be the same shards.
    far = [name for name in dict.fromkeys(need.far) if name in files and name not in near]
    not_soon = sorted(
        files.keys() - {*near, *far}, key=lambda name: (name.partition("-")[0] not in need.hashes, files[name][1])
    )
    gone = []
    for name in (*not_soon, *reversed(far)):
        if size <= 0:
            break
        gone.append(name)
        size -= files[name][0]
    return gone if size <= 0 else None


_ENDING, _PART_ENDING = ".lmms-cache", ".lmms-part"
"""Names that no one else would give, since what has them is deleted."""
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


def need_of(datasets: Sequence[Dataset], ahead: Sequence[tuple[int, int]]) -> Need:
    """Of a reader that waits for a shard: all it needs later, (set, shard) in order of next use, may go before that."""
    far = [cached_name(datasets[number], shard) for number, shard in ahead]
    return Need(frozenset(dataset.index_hash for dataset in datasets), far=far)


def read_cached(dataset: Dataset, shard: int, offset: int, size: int) -> bytes | None:
    """Some bytes of a shard in the cache, None if it is not there. A file of another size than the shard's is removed;
    the bytes themselves are the reader's to check."""
    assert dataset.cache
    path = dataset.cache.folder / cached_name(dataset, shard)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(file)
        if found.st_size != dataset.shards[shard].bytes:
            path.unlink(missing_ok=True)
            return None
        if time.time() - found.st_mtime > _TOUCH_S:
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
    while True:
        _fetch(dataset, _File(name, entry["bytes"], entry["xxh3"], "the manifest"), need_of([dataset], ()))
        with suppress(FileNotFoundError):  # evicted just now
            data = path.read_bytes()
            if data_entry(data) == entry:
                return data
            path.unlink(missing_ok=True)


def is_missing(dataset: Dataset, shard: int) -> bool:
    """Whether a shard could be in the cache, but is not."""
    return dataset.cache is not None and not (dataset.cache.folder / cached_name(dataset, shard)).exists()


def forget(dataset: Dataset, shard: int) -> None:
    """Take a shard that is damaged out of the cache."""
    assert dataset.cache
    (dataset.cache.folder / cached_name(dataset, shard)).unlink(missing_ok=True)


def fetch(
    dataset: Dataset, shard: int, need: Need, *, wait: bool = True, go_on: Callable[[], bool] = lambda: True
) -> bool:
    """Bring a shard into the cache, and say whether it is there.

    wait: for another process that fetches it, and for room that others' fetches take. Without, one that another process
    fetches counts as there, and False means that there is no room for it. go_on: asked after each few MB, False gives
    up. DatasetError where the store does not give what the index names, or the disk does not take it.
    """
    named = dataset.shards[shard]
    return _fetch(dataset, _File(named.name, named.bytes, named.xxh3, "its index"), need, wait, go_on)


def _fetch(
    dataset: Dataset, file: _File, need: Need, wait: bool = True, go_on: Callable[[], bool] = lambda: True
) -> bool:
    assert dataset.cache
    folder, name = dataset.cache.folder, _name(dataset, file.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while not (folder / name).exists():
            with _claimed(dataset.cache, name, file.bytes, need) as (part, has_room):
                if part is None and not wait:
                    return has_room
                if part is not None:
                    if not _download(dataset, file, part / "data", go_on):
                        return False
                    with _locked(folder):
                        (part / "data").rename(folder / name)
                        shutil.rmtree(part)
                    # Another may have evicted it by now; to fetch it again would evict what that one has fetched.
                    return True
            time.sleep(_POLL_S)
    except OSError as error:
        raise DatasetError(
            f"{dataset.where}/{file.name} cannot be kept in {folder} ({error.strerror});"
            " free space there, set another data.cache, or a lower data.cache_gb"
        ) from error
    return True


@contextmanager
def _claimed(cache: Cache, name: str, size: int, need: Need) -> Iterator[tuple[Path | None, bool]]:
    """An empty folder to fetch a shard into, with room made for it; None where another has it, or there is no room.

    And whether there is room: True where another has it.
    """
    part = cache.folder / f"{name.removesuffix(_ENDING)}.{size}{_PART_ENDING}"
    with ExitStack() as held:
        with _locked(cache.folder):
            reserved, files = _reserved(cache.folder), _files(cache.folder)
            over = reserved + sum(size for size, _ in files.values()) + size - cache.limit_bytes
            is_others = part.exists() or name in files
            gone = None if is_others else to_evict(files, over, need)
            if gone is not None:
                for evicted in gone:
                    (cache.folder / evicted).unlink(missing_ok=True)
                part.mkdir()
                _try_lock(held.enter_context(_opened(part)))
                held.callback(shutil.rmtree, part, ignore_errors=True)  # after success it is not there
        yield None if gone is None else part, is_others or gone is not None


def _download(dataset: Dataset, file: _File, path: Path, go_on: Callable[[], bool]) -> bool:
    """Fetch a shard to `path`, once more if it does not arrive as it was written; False if that was given up."""
    for _ in range(2):
        if isinstance(dataset.store, FileStore):
            dataset.store.download(file.name, path)
        else:
            with path.open("wb") as out:
                for block in read_blocks(dataset.store, file.name, file.bytes):
                    out.write(block)
                    if not go_on():
                        return False
        with path.open("rb") as data:
            found = hashlib.file_digest(data, xxhash.xxh3_64).hexdigest()
            size = data.tell()
        if (size, found) == (file.bytes, file.xxh3):
            return True
    is_short = size != file.bytes
    what = f"has {size} bytes, expected {file.bytes}" if is_short else f"does not have the hash of {file.named_by}"
    raise DatasetError(f"{dataset.where}/{file.name} {what}: truncated or damaged; copy it again or rebuild")


def _name(dataset: Dataset, file: str) -> str:
    return f"{dataset.index_hash}-{file}{_ENDING}"


def _files(folder: Path) -> dict[str, tuple[int, float]]:
    """The shards in the cache: name -> (bytes, time of use)."""
    found = {}
    for path in folder.glob(f"*{_ENDING}"):
        with suppress(FileNotFoundError):  # a reader has taken it out
            status = path.stat()
            found[path.name] = (status.st_size, status.st_mtime)
    return found


def _reserved(folder: Path) -> int:
    """Bytes of the shards that are being fetched. What killed processes left of others is removed."""
    total = 0
    for part in folder.glob(f"*{_PART_ENDING}"):
        with suppress(FileNotFoundError), _opened(part) as descriptor:  # given up just now
            if _try_lock(descriptor):
                shutil.rmtree(part)
            else:
                total += int(part.name.removesuffix(_PART_ENDING).rpartition(".")[2])
    return total


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone among all who ask for this folder."""
    with _opened(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
