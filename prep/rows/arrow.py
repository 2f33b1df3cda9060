"""Arrow files as sources, and other work that only pyarrow can do. No other module of lmms imports pyarrow.

read_arrow       Arrow IPC files and streams, such as those of a saved Hugging Face data set
row_groups       which rows a row group of a Parquet file has: polars does not say
group_batches    a large row group of a Parquet file, a few rows at a time: polars reads all of it
read_row_group   rows of a Parquet file that polars refuses (see read_parquet)
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import CHUNK_ROWS, rows_of_chunk
from lmms.prep.rows.columns import check_names

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_arrow(file: Path, columns: Collection[str], most: int | None = None) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Batches of the rows, each small enough for a chunk, and the position in the file after each."""
    with _oserror(), pa.memory_map(str(file)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        if is_file:
            reader = pa.ipc.open_file(mapped)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            mapped.seek(max(mapped.size() - len(_END_OF_STREAM), 0))
            if mapped.read() != _END_OF_STREAM:
                raise OSError("the stream has no end mark")
            mapped.seek(0)
            reader = pa.ipc.open_stream(mapped)
            batches = iter(reader)
        if most is None:
            check_names(reader.schema.names, columns)
        for batch in batches:
            _check_buffers(batch)
            position = mapped.tell()
            yield from ((part, position) for part in split_batch(batch))


def row_groups(file: Path, columns: Collection[str] = ()) -> list[tuple[int, int]]:
    """(rows, bytes when decompressed) of each row group of a Parquet file. OSError: two `columns` have one name."""
    with _oserror(), pq.ParquetFile(file) as table:
        check_names(table.schema_arrow.names, columns)
        groups = [table.metadata.row_group(i) for i in range(table.num_row_groups)]
        rows = [group.num_rows for group in groups]
        if sum(rows) != table.metadata.num_rows:
            raise OSError(f"{sum(rows)} rows in its row groups, {table.metadata.num_rows} in its footer")
        return [(group.num_rows, group.total_byte_size) for group in groups]


def read_row_group(file: Path, group: int, start: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Some rows of a row group, in batches small enough for a chunk. start is a multiple of CHUNK_ROWS."""
    with _oserror(), pq.ParquetFile(file) as table:
        batches = table.iter_batches(CHUNK_ROWS, row_groups=[group])
        for batch in islice(batches, start // CHUNK_ROWS, -(-(start + rows) // CHUNK_ROWS)):
            yield from split_batch(batch)


def group_batches(file: Path, group: int, rows: int) -> Iterator[pa.RecordBatch | None]:
    """A row group in batches of so many rows, read a MiB at a time; None for a batch with a text that is not UTF-8."""
    with _oserror(), pq.ParquetFile(file, buffer_size=2**20, pre_buffer=False) as table:
        for batch in table.iter_batches(rows, row_groups=[group], use_threads=False):
            try:
                batch.validate(full=True)
            except pa.ArrowInvalid as error:
                if "UTF8" not in str(error):
                    raise
                yield None
            else:
                yield batch


def batch_values(batch: pa.RecordBatch, columns: Collection[str]) -> Iterator[Any]:
    """A dict of columns for each row, or a Reject. A column that is not among `columns` has True for a value."""
    every = batch.schema.names
    names = list(enumerate(every))  # numbers, since two columns may have one name
    kinds = batch.schema.types
    read = {
        name
        for number, name in names
        if (is_read(name, columns) or _has_read_field(kinds[number], columns)) and every.count(name) == 1
    }
    used = batch.select([number for number, name in names if name in read])
    unused = {name: batch.column(number).is_valid().to_pylist() for number, name in names if name not in read}
    for i in range(batch.num_rows):
        others = {name: valid[i] or None for name, valid in unused.items()}
        try:
            yield {**used.slice(i, 1).to_pylist()[0], **others} if used.num_columns else others
        except UnicodeDecodeError as error:
            yield Reject("not_utf8", f"a text of the row is not UTF-8 ({error.reason})")
        except (pa.ArrowException, ValueError, OverflowError) as error:
            yield Reject("unreadable_row", f"the row cannot be read: {error}")


def is_read(name: str, columns: Collection[str]) -> bool:
    """Whether a column is converted. Capitals count for nothing: a column `Image` may hold what `image` holds."""
    return name in columns or name.lower() in columns


def _has_read_field(kind: pa.DataType, columns: Collection[str]) -> bool:
    """Whether a column has a field of the name of a column that is converted: media may be within any column."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_read_field(kind.value_type, columns)
    if not pa.types.is_struct(kind):
        return False
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return any(is_read(field.name, columns) or _has_read_field(field.type, columns) for field in fields)


@contextmanager
def _oserror() -> Iterator[None]:
    """pyarrow's errors as OSError, so that code that reads a source need not import pyarrow."""
    try:
        yield
    except pa.ArrowException as error:
        raise OSError(str(error)) from error


def _check_buffers(batch: pa.RecordBatch) -> None:
    """Damage in an Arrow file would read memory out of bounds later. Text that is not UTF-8 is the fault of one row."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        for column in batch.columns:  # the check ends at the first fault: the rest is checked with the text as bytes
            _as_bytes(column).validate(full=True)


def _as_bytes(array: pa.Array) -> pa.Array:
    """The array on the same buffers with bytes in place of text, at any depth."""
    kind, children = array.type, []
    own_buffers = 2
    if pa.types.is_string(kind):
        kind, own_buffers = pa.binary(), 3
    elif pa.types.is_large_string(kind):
        kind, own_buffers = pa.large_binary(), 3
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        children = [_as_bytes(array.values)]
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        kind = make(kind.value_field.with_type(children[0].type))
    elif pa.types.is_struct(kind):
        children = [_as_bytes(array.field(i)) for i in range(kind.num_fields)]
        fields = [kind.field(i).with_type(child.type) for i, child in enumerate(children)]
        kind, own_buffers = pa.struct(fields), 1
    else:
        return array
    buffers = array.buffers()[:own_buffers]
    return pa.Array.from_buffers(kind, len(array), buffers, offset=array.offset, children=children or None)


def split_batch(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Batches that are small enough for a chunk."""
    rows = rows_of_chunk(batch.num_rows, batch.nbytes)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)
