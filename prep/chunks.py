"""Sources -> chunks of raw rows, in one order, with bounded memory; and the value of each row.

The libraries that read tables are loaded in a child only.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from lmms.configs.errors import SourceError, refuse_file_limit
from lmms.prep.choice.first import first_records
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import Reject
from lmms.prep.rows.child import ReadTable, table_reader
from lmms.prep.rows.chunk import Chunk, Packed, Rows, TarRow
from lmms.prep.rows.columns import TWICE, without_struct_nulls
from lmms.prep.rows.csv_table import read_csv
from lmms.prep.rows.json_list import read_json
from lmms.prep.rows.kinds import TABLES
from lmms.prep.rows.lines import check_pointer, is_blank, read_lines
from lmms.prep.rows.memory import memory_rows
from lmms.prep.rows.tar import read_tar, with_members
from lmms.prep.sources import Source

BLANK = object()
"""The value of a line of white space: skipped, not rejected."""


def memory_chunks(index: int, records: Any) -> Iterator[Chunk]:
    """Records in memory as chunks, see memory_rows."""
    row = 0
    for rows in memory_rows(records):
        yield Chunk(index, row, rows, 0)
        row += len(rows)


Numbered: TypeAlias = "tuple[int, Source]"
"""A source and its number."""


def read_chunks(sources: Sequence[Source]) -> Iterator[Chunk]:
    """The rows of files, as chunks. SourceError when a file cannot be read to its end."""
    yield from read_groups(source_groups(sources))


def source_groups(sources: Sequence[Source]) -> list[list[Numbered]]:
    """Sources that are read one after another: those of an entry with max_records; each other source alone."""
    groups: list[list[Numbered]] = []
    for number, source in enumerate(sources):
        is_same = groups and groups[-1][-1][1].entry == source.entry
        if is_same and source.choice.max_records is not None:
            groups[-1].append((number, source))
        else:
            groups.append([(number, source)])
    return groups


def read_groups(groups: Iterable[Sequence[Numbered]]) -> Iterator[Chunk]:
    """The rows of groups of sources, as chunks; see read_chunks."""
    with table_reader() as read_table:
        for group in groups:
            all_chunks = (chunk for number, source in group for chunk in source_chunks(number, source, read_table))
            with closing(all_chunks) as chunks:
                yield from first_records(chunks, group[0][1].choice.max_records)


def source_chunks(index: int, source: Source, read_table: ReadTable) -> Iterator[Chunk]:
    """The rows of one source, as chunks; see read_chunks, and table_reader for `read_table`."""
    row = read_before = 0
    for file in source.files:
        for rows, position in rows_of(file, source, read_table):
            yield Chunk(index, row, rows, read_before + position)
            row += len(rows)
        read_before += file.stat().st_size


def rows_of(file: Path, source: Source, read_table: ReadTable, most: int | None = None) -> Iterator[tuple[Rows, int]]:
    """The rows of each chunk, and the position in the file after them. most: see ReadTable."""
    row = 0
    try:
        check_pointer(file)
        reader = read_table(source.kind, file, source.columns, most) if source.kind in TABLES else _reader(file, source)
        for rows, position in reader:
            yield rows, position
            row += len(rows)
    except OSError as error:
        refuse_file_limit(error)
        if str(error).startswith(TWICE):
            raise SourceError(f"{file}: {error}") from error
        raise SourceError(f"{file}: cannot be read past row {row} ({error}); the file is damaged or cut off") from error


def _reader(file: Path, source: Source) -> Iterator[tuple[Rows, int]]:
    kind = source.kind
    if kind == "tar":
        return read_tar(file)
    if kind in ("csv", "tsv"):
        return read_csv(file, b"," if kind == "csv" else b"\t", source.columns)
    return read_json(file) if kind == "json" else read_lines(file)


def chunk_values(
    chunk: Chunk, columns: Collection[str], begun: Callable[[int], None] | None = None
) -> Iterator[tuple[int, Any]]:
    """(row, value) of each row: a JSON value, a dict of columns, a Reject, or BLANK.

    columns: those of a table that are converted; another column has True where it holds a value. begun: called with
    each row before the row is read.
    """
    lost = chunk.care.lost if chunk.care else {}
    for row, value in enumerate(islice(_values(chunk.rows, columns), chunk.most), chunk.first_row):
        if begun:
            begun(row)
        yield row, lost[row] if row in lost else _parsed(value)


def _values(rows: Rows, columns: Collection[str]) -> Iterable[Any]:
    is_table = isinstance(rows, Packed)
    if isinstance(rows, Packed):
        rows = rows.unpack()
    if isinstance(rows, list):
        return map(without_struct_nulls, rows) if is_table else rows
    from lmms.prep.rows.arrow import batch_values

    return map(without_struct_nulls, batch_values(rows, columns))


def _parsed(value: Any) -> Any:
    if isinstance(value, bytes):
        return _line_value(value)
    if not isinstance(value, TarRow):
        return value
    record = {} if value.record is None else _line_value(value.record)
    try:
        return with_members(record, value) if isinstance(record, dict) else record
    except Reject as reject:
        return reject


def _line_value(line: bytes) -> Any:
    if is_blank(line):
        return BLANK
    try:
        return parse_line(line)
    except Reject as reject:
        return reject
