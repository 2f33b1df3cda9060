"""Room in a cache: what is there, what leaves it, and who may fetch.

Two locks, which end with the process that holds them: on the cache folder while room is made, on a part while its file
is fetched. So only one process fetches a shard. A killed process leaves a part, which the next process removes.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lmms.configs.files import PART_ENDING
from lmms.configs.stores.store import Cache

ENDING = ".lmms-cache"
"""An ending that no other program would give to a file, since files with this ending are deleted."""


@dataclass(frozen=True, slots=True)
class Need:
    """What a run will read, by the names of cached shards: for the choice of which files are deleted."""

    hashes: frozenset[str]
    """Hashes of the indexes of the run's data sets. Their shards that are neither near nor far are not needed soon."""
    near: Sequence[str] = ()
    """Shards needed before the shard that is to be fetched: these shards stay."""
    far: Sequence[str] = ()
    """Shards needed after the shard that is to be fetched, in order: if nothing else is left, the last leaves first."""


def to_evict(files: Mapping[str, tuple[int, float]], size: int, need: Need) -> list[str] | None:
    """Which of these files, name -> (bytes, time of use), leave to free `size` bytes; None if too few may leave.

    Files leave in this order: shards of the run's data sets that are not needed soon, then shards of other data sets,
    in both the longest unused first; then the shards that the run needs last.
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


class Claim(NamedTuple):
    """The right to fetch a file into the cache."""

    part: Path | None
    """An empty folder for the file; None where the file is there, another process fetches it, or there is no room."""
    has_room: bool
    """Whether there is room for the file, or the file is there already."""


@contextmanager
def claimed(cache: Cache, name: str, size: int, need: Need) -> Iterator[Claim]:
    """A claim to fetch a file, with room made for it."""
    part = cache.folder / f"{name.removesuffix(ENDING)}.{size}{PART_ENDING}"
    with ExitStack() as releases:
        with locked(cache.folder):
            reserved, files = _reserved(cache.folder), _files(cache.folder)
            over = reserved + sum(size for size, _ in files.values()) + size - cache.limit_bytes
            is_others = part.exists() or name in files
            gone = None if is_others else to_evict(files, over, need)
            if gone is not None:
                for evicted in gone:
                    (cache.folder / evicted).unlink(missing_ok=True)
                part.mkdir()
                _try_lock(releases.enter_context(_opened(part)))
                releases.callback(shutil.rmtree, part, ignore_errors=True)  # after success the part is gone
        yield Claim(None if gone is None else part, is_others or gone is not None)


def _files(folder: Path) -> dict[str, tuple[int, float]]:
    """The shards in the cache: name -> (bytes, time of use)."""
    sizes = {}
    for path in folder.glob(f"*{ENDING}"):
        with suppress(FileNotFoundError):  # a reader has deleted the file
            status = path.stat()
            sizes[path.name] = (status.st_size, status.st_mtime)
    return sizes


def _reserved(folder: Path) -> int:
    """Bytes of the shards that are being fetched. Parts that killed processes left are removed."""
    total = 0
    for part in folder.glob(f"*{PART_ENDING}"):
        with suppress(FileNotFoundError), _opened(part) as descriptor:  # its fetch was stopped just now
            if _try_lock(descriptor):
                shutil.rmtree(part)
            else:
                total += int(part.name.removesuffix(PART_ENDING).rpartition(".")[2])
    return total


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A lock on this folder: only one process has the lock at a time."""
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
