"""What each process of a build may hold, by the setting `memory`: how many there are, and how large a record may be.

The processes have equal shares, and the process that reads has one too. The system holds a worker to its share: what
would take more ends the worker, as a machine without memory does, and then the record is rejected by name.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmms.configs.errors import BuildError
from lmms.configs.settings.prep import LEAST_MEMORY
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import Care, Chunk, row_bytes

_LOADED = 400 * 2**20
"""Bytes that a worker takes when its tokenizer is loaded, before any record."""
_COPIES = 8
"""About how often a record is in the memory of a worker at once: as text, as values, as tokens, as a sample."""
_UNDER_WAY = 3
"""Records of the largest size that may be under way together: the process that reads holds them too."""


@dataclass(frozen=True, slots=True)
class Shares:
    """What the processes of a build may hold."""

    workers: int
    process: int | None = None
    """Bytes of each process; None: no bound."""

    @property
    def record(self) -> int | None:
        """Bytes of the largest record, as it is in its file; None: no bound."""
        return None if self.process is None else (self.process - _LOADED) // _COPIES


def shares_of(memory: int | None, workers: int) -> Shares:
    """The shares of so many bytes: fewer workers where the memory is not enough for all of them."""
    if memory is None:
        return Shares(workers)
    workers = min(workers, 2 * memory // LEAST_MEMORY - 1)
    return Shares(workers, memory // (workers + 1))


def hold_to_share(share: int | None) -> None:
    """Ask the system to refuse this process more than so many bytes. Linux alone counts what a process holds."""
    if share is None or sys.platform != "linux":
        return
    import resource

    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (share if hard == resource.RLIM_INFINITY else min(share, hard), hard))


def may_start(shares: Shares, under_way: Sequence[tuple[int, Chunk]], task: tuple[int, Chunk]) -> bool:
    """Whether the memory is enough for one more chunk beside those under way: always for one alone."""
    if shares.record is None or not under_way:
        return True
    return sum(chunk.rows_bytes for _, chunk in (*under_way, task)) <= _UNDER_WAY * shares.record


def within_share(shares: Shares, chunk: Chunk, source: str) -> Chunk:
    """The chunk without records that are too large for a worker: each is a Reject in its place.

    source: its name. BuildError for rows of a table, which come in one piece.
    """
    most = shares.record
    if most is None or chunk.rows_bytes <= most:
        return chunk
    advice = f"the setting memory leaves room for records of {most} bytes; set more memory, or fewer workers"
    rows: list[Any] = chunk.rows if isinstance(chunk.rows, list) else [chunk.rows]
    if len(rows) < len(chunk.rows):
        place = f"rows {chunk.first_row} to {chunk.first_row + len(chunk.rows) - 1} of {source}"
        raise BuildError(f"{place} take {chunk.rows_bytes} bytes together; {advice}")
    sizes = dict(enumerate(map(row_bytes, rows), chunk.first_row))
    lost = {
        row: Reject("record_memory", f"the record has {size} bytes; {advice}")
        for row, size in sizes.items()
        if size > most
    }
    small = [value if row not in lost else b"" for row, value in zip(sizes, rows, strict=True)]
    return replace(chunk, rows=small, care=Care(lost, deaths=0)) if lost else chunk
