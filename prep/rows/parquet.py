"""A Parquet file -> the rows of its chunks, as dicts. polars reads, a row group at a time.

polars holds a whole row group in memory, whatever part is asked for. So a large one is read by pyarrow, a few rows at
a time, which polars takes over.

In two cases polars does not give the values that a build needs; then pyarrow reads the same rows one by one:

- A text that is not UTF-8 costs a build one row. polars gives no row that shares a page or a dictionary with that text.
- Columns of some kinds (see _is_plain) get other values: nanoseconds are cut off, a map becomes a dict.
"""

from collections.abc import Collection, Iterator
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from lmms.prep.rows.arrow import group_batches, is_read, read_row_group, row_groups
from lmms.prep.rows.chunk import CHUNK_ROWS, Rows, rows_of_chunk

if TYPE_CHECKING:
    from polars.datatypes import DataTypeClass

_PIECE_BYTES, _MOST_PIECES = 2**27, 16
"""A larger row group is read a few rows at a time, or if its columns do not allow that in pieces, of which each reads
the row group once."""
_BATCH_BYTES = 2**24
"""Bytes of the rows that are read at a time."""

_REFUSED = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""The errors of polars for a file that polars cannot read; pyarrow decides whether the file is damaged."""


def read_parquet(file: Path, columns: Collection[str], most: int | None = None) -> Iterator[tuple[Rows, int]]:
    """The rows of each chunk with values for `columns`, and about how many bytes of the file were read so far.

    most: rows enough for a look at the start of the file; None for all of it.
    """
    groups = row_groups(file, columns if most is None else ())
    if most is not None:
        yield from _first_rows(
            file, min(most, sum(rows for rows, _ in groups)), columns, groups[0] if groups else (0, 0)
        )
        return
    size, total = file.stat().st_size, max(sum(rows for rows, _ in groups), 1)
    first = done = 0
    all_plain = _are_all_plain(file)
    for number, (group_rows, group_bytes) in enumerate(groups):
        if all_plain and group_bytes > _PIECE_BYTES:
            for part in _streamed(file, number, group_rows, group_bytes, columns):
                done += len(part)
                yield part, size * done // total
            first += group_rows
            continue
        for start, rows in _pieces(group_rows, group_bytes):
            frame = _read(file, first + start, rows, columns)
            parts = (
                read_row_group(file, number, start, rows)
                if frame is None
                else (_dicts(piece, columns) for piece in _cut(frame))
            )
            del frame  # before the next piece is read
            for part in parts:
                done += len(part)
                yield part, size * done // total
        first += group_rows
    if done != first:
        raise OSError(f"{done} rows can be read, {first} are in its footer")


def _first_rows(file: Path, rows: int, columns: Collection[str], group: tuple[int, int]) -> Iterator[tuple[Rows, int]]:
    """The first rows of a file. group: rows and bytes of the first row group."""
    if rows <= group[0] and group[1] > _PIECE_BYTES and _are_all_plain(file):
        batch = next(group_batches(file, 0, rows), None)
        frame = None if batch is None else pl.DataFrame(batch)
    else:
        frame = _read(file, 0, rows, columns)
    if frame is not None:
        yield _dicts(frame, columns), 0
    else:
        yield from ((part, 0) for part in islice(read_row_group(file, 0, 0, rows), 1))


def _pieces(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """(first row, rows) of each piece of a row group: whole batches of CHUNK_ROWS, but for the last."""
    pieces = min(-(-size // _PIECE_BYTES), _MOST_PIECES, -(-rows // CHUNK_ROWS)) or 1
    step = CHUNK_ROWS * -(-rows // (CHUNK_ROWS * pieces))
    for start in range(0, rows, step):
        yield start, min(step, rows - start)


def _streamed(file: Path, group: int, rows: int, size: int, columns: Collection[str]) -> Iterator[Rows]:
    """The rows of each chunk of a large row group, cut as _cut does.

    The row group is read twice at once: where a chunk ends depends on the bytes of CHUNK_ROWS rows.
    """
    step = 2 ** min(max(_BATCH_BYTES * rows // size, 1).bit_length() - 1, CHUNK_ROWS.bit_length() - 1)
    measured, batches = group_batches(file, group, step), group_batches(file, group, step)
    for start in range(0, rows, CHUNK_ROWS):
        height = min(CHUNK_ROWS, rows - start)
        number = ceil(height / step)
        frames = (None if batch is None else pl.DataFrame(batch) for batch in islice(measured, number))
        sizes = [None if frame is None else sum(map(_size, frame)) for frame in frames]
        part = islice(batches, number)
        if None in sizes:
            list(part)  # these rows are read in another way
            yield from read_row_group(file, group, start, height)
        else:
            most = rows_of_chunk(height, sum(each or 0 for each in sizes))
            yield from (_dicts(frame, columns) for frame in _regrouped(map(pl.DataFrame, part), most))


def _regrouped(frames: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The same rows in frames of so many, the last perhaps of fewer."""
    rest: pl.DataFrame | None = None
    for frame in frames:
        rest = frame if rest is None else pl.concat([rest, frame])
        while rest.height >= rows:
            yield rest.head(rows)
            rest = rest.slice(rows)
    if rest is not None and rest.height:
        yield rest


def _are_all_plain(file: Path) -> bool:
    try:
        return all(map(_is_plain, pl.scan_parquet(file, glob=False, hive_partitioning=False).collect_schema().dtypes()))
    except _REFUSED:
        return False


def _read(file: Path, first: int, rows: int, columns: Collection[str]) -> pl.DataFrame | None:
    """Some rows of a file, or None if pyarrow has to read them."""
    try:
        scan = pl.scan_parquet(file, glob=False, hive_partitioning=False)
        used = [kind for name, kind in scan.collect_schema().items() if _is_used(name, kind, columns)]
        if not all(map(_is_plain, used)):
            return None
        frame = scan.slice(first, rows).collect()
    except _REFUSED:
        return None
    return frame if frame.height == rows else None


def _is_used(name: str, kind: "pl.DataType | DataTypeClass", columns: Collection[str]) -> bool:
    """Whether a column is converted: by its name, or by that of a field within it, since media may be there."""
    if is_read(name, columns):
        return True
    if isinstance(kind, pl.List):
        return _is_used("", kind.inner, columns)
    return isinstance(kind, pl.Struct) and any(_is_used(field.name, field.dtype, columns) for field in kind.fields)


def _is_plain(kind: "pl.DataType | DataTypeClass") -> bool:
    """Whether polars gives the same Python values of a column as pyarrow."""
    if isinstance(kind, pl.List):
        return _is_plain(kind.inner)
    if isinstance(kind, pl.Struct):
        return all(_is_plain(field.dtype) for field in kind.fields)
    plain = (pl.String, pl.Binary, pl.Boolean, pl.Null, pl.Categorical)
    return isinstance(kind, plain) or kind.is_integer() or kind.is_float()


def _cut(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    for batch in frame.iter_slices(CHUNK_ROWS):
        yield from batch.iter_slices(rows_of_chunk(batch.height, sum(map(_size, batch))))


def _size(column: pl.Series) -> int:
    """Bytes of a column in memory, nearly as Arrow counts them: polars' own estimate changes with its version."""
    kind, rows = column.dtype, len(column)
    if isinstance(kind, pl.List):
        return 4 * rows + _size(column.list.explode(keep_nulls=False, empty_as_null=False))
    if isinstance(kind, pl.Struct):
        return sum(map(_size, column.struct.unnest()))
    if isinstance(kind, pl.String | pl.Categorical):
        return 4 * rows + int(column.cast(pl.String).str.len_bytes().sum())
    if isinstance(kind, pl.Binary):
        return 4 * rows + int(column.bin.size().sum())
    return 8 * rows


def _dicts(frame: pl.DataFrame, columns: Collection[str]) -> list[dict[str, Any]]:
    """A dict of columns for each row. A column that is not among `columns` has True where it holds a value."""
    used = [name for name, kind in frame.schema.items() if _is_used(name, kind, columns)]
    others = [pl.when(pl.col(name).is_not_null()).then(True).alias(name) for name in frame.columns if name not in used]
    return frame.select(*used, *others).to_dicts()
