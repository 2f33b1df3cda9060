"""Records in the memory of a program -> rows of chunks: dicts, a polars frame, a datasets.Dataset."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lmms.configs.errors import SourceError
from lmms.configs.words import type_name
from lmms.prep.rows.chunk import CHUNK_BYTES, CHUNK_ROWS, Rows, rows_of_chunk
from lmms.prep.rows.columns import without_struct_nulls


def memory_rows(records: Any) -> Iterator[Rows]:
    """The rows of each chunk. records: an iterable of dicts, a polars frame, or a data set of the package datasets.

    Neither package is imported: a data set is known by its `with_format`, a frame by its `iter_slices`. SourceError for
    any other type, and for an entry that is no dict.
    """
    if isinstance(records, Mapping):
        names = ", ".join(map(str, records)) or "nothing"
        advice = "give one of its values, such as a split, or put one record into a list"
        raise SourceError(f"records is {type_name(records)} of {names}; {advice}")
    if hasattr(records, "with_format"):
        from lmms.prep.rows.arrow import split_batch

        for table in records.with_format("arrow").iter(batch_size=CHUNK_ROWS):
            for batch in table.to_batches():
                yield from split_batch(batch)
    elif hasattr(records, "iter_slices"):
        rows = rows_of_chunk(records.height, records.estimated_size())
        yield from (list(map(without_struct_nulls, frame.to_dicts())) for frame in records.iter_slices(rows))
    elif isinstance(records, Iterable) and not isinstance(records, str | bytes):
        yield from _chunks(records)
    else:
        expected = "an iterable of dicts, a polars frame or a datasets.Dataset"
        raise SourceError(f"records is {type_name(records)}, expected {expected}")


def _chunks(records: Iterable[Any]) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    size = 0
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise SourceError(f"record {number} is {type_name(record)}, expected a dict of columns")
        rows.append(record)
        size += _size(record)
        if len(rows) == CHUNK_ROWS or size >= CHUNK_BYTES:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _size(record: Mapping[str, Any]) -> int:
    """About how many bytes of text and media are in a record."""
    size, values = 0, list[Any]([record])
    while values:
        value = values.pop()
        if isinstance(value, str | bytes):
            size += len(value)
        elif isinstance(value, Mapping):
            values.extend(value.values())
        elif isinstance(value, list | tuple):
            values.extend(value)
        else:
            size += 8
    return size
