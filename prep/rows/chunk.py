"""What a chunk is: some consecutive rows of one source, the work of one task.

Only the input decides where a chunk ends, so the same input gives the same chunks for any number of workers.
"""

import pickle
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from lmms.prep.reject import Reject

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

CHUNK_ROWS, CHUNK_BYTES = 512, 8 * 2**20

MOST_BYTES = 2**29
"""A record with more bytes is no record: the file is not what its name says."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of a table as a child sent them: they are unpacked where they are used."""

    data: bytes
    rows: int

    def __len__(self) -> int:
        return self.rows

    def unpack(self) -> Any:
        """The rows: a list of dicts, or a pyarrow.RecordBatch."""
        return pickle.loads(self.data)


@dataclass(slots=True)
class TarRow:
    """The members of one record of a tar file."""

    key: str
    record: bytes | None = None
    """The JSON member."""
    texts: dict[str, bytes] = field(default_factory=dict)
    """Ending -> text member."""
    media: dict[str, bytes] = field(default_factory=dict)
    """Name of a member -> its bytes, in the order of the file."""


Rows: TypeAlias = "list[bytes] | list[dict[str, Any]] | list[TarRow] | pa.RecordBatch | Packed"
"""Lines of a text file, rows of a table, or records of a tar file."""


@dataclass(frozen=True, slots=True)
class Care:
    """A process died with this chunk: its records are made one by one, so that it is known with which."""

    lost: Mapping[int, Reject] = field(default_factory=dict)
    """Row that ended a process twice -> what becomes of it."""
    suspect: int | None = None
    """Row with which the last process died."""
    deaths: int = 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of one source, still raw."""

    source: int
    first_row: int
    rows: Rows
    file_bytes: int
    """Bytes of the source's files read so far: progress."""
    most: int | None = None
    """Rows at the start of the chunk that are read; None: all."""
    care: Care | None = None

    @property
    def rows_bytes(self) -> int:
        """About how many bytes the rows take."""
        return sum(map(row_bytes, self.rows)) if isinstance(self.rows, list) else row_bytes(self.rows)


def row_bytes(row: Any) -> int:
    """About how many bytes a row takes, or the rows of a table together; 0 for a dict, which is in memory anyhow."""
    if isinstance(row, TarRow):
        return sum(map(len, (row.record or b"", *row.texts.values(), *row.media.values())))
    if isinstance(row, bytes):
        return len(row)
    if isinstance(row, Packed):
        return len(row.data)
    return 0


def rows_of_chunk(rows: int, size: int) -> int:
    """Rows of a chunk, where `rows` rows have `size` bytes together."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES * rows // max(size, 1)))


def in_chunks(rows: Iterable[tuple[T, int, int]]) -> Iterator[tuple[list[T], int]]:
    """(row, its bytes, the position in the file after it) -> the rows of each chunk, and the position after them."""
    chunk: list[T] = []
    size = position = 0
    for row, row_bytes, position in rows:
        chunk.append(row)
        size += row_bytes
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield chunk, position
            chunk, size = [], 0
    if chunk:
        yield chunk, position
