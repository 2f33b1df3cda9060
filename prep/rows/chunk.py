"""What a chunk is: some consecutive rows of one source, the work of one task.

A chunk is cut by rows and bytes of the input alone, so the same input gives the same chunks for any number of workers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS, CHUNK_BYTES = 512, 8 * 2**20

USED_COLUMNS = ("messages", "images", "weight", "tools", "videos", "audios", "text")
"""Columns of a table that are converted; of the others only the names matter."""


Rows: TypeAlias = "list[bytes] | list[dict[str, Any]] | pa.RecordBatch"
"""Lines of a text file, or rows of a table."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of one source, still raw."""

    source: int
    first_row: int
    rows: Rows
    file_bytes: int
    """Bytes of the source's files read so far: progress."""


def rows_of_chunk(rows: int, size: int) -> int:
    """How many of so many rows, of `size` bytes together, a chunk takes."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES * rows // max(size, 1)))
