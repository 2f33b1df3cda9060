"""The setting `max_records`: the first records of an entry in the list of sources."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from lmms.prep.rows.chunk import Chunk
from lmms.prep.rows.lines import is_blank


def first_records(chunks: Iterable[Chunk], most: int | None) -> Iterator[Chunk]:
    """The chunks with the first records, as many as `most`; nothing is read behind them. Blank lines do not count."""
    left = most
    for chunk in chunks:
        if left is None:
            yield chunk
            continue
        ends = _record_ends(chunk)
        if len(ends) >= left:
            yield replace(chunk, most=ends[left - 1])
            return
        left -= len(ends)
        yield chunk


def _record_ends(chunk: Chunk) -> Sequence[int]:
    """The number of rows up to and with each record of a chunk."""
    if not isinstance(chunk.rows, list):
        return range(1, len(chunk.rows) + 1)
    return [i for i, row in enumerate(chunk.rows, 1) if not (isinstance(row, bytes) and is_blank(row))]
