"""What a chunk is: some consecutive rows of one source, the work of one task.

Only the input decides where a chunk ends, so the same input gives the same chunks for any number of workers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_ROWS, CHUNK_BYTES = 512, 8 * 2**20

USED_COLUMNS = (
    "messages",
    "images",
    "weight",
    "tools",
    "functions",
    "chat_template_kwargs",
    "videos",
    "audios",
    "text",
)
"""Columns of a table that are converted; other columns count by name only."""


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
    """Rows of a chunk, where `rows` rows have `size` bytes together."""
    return max(1, min(CHUNK_ROWS, CHUNK_BYTES * rows // max(size, 1)))
