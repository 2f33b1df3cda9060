"""Files of chat records -> chunks of raw rows, in one order, with bounded memory.

    .jsonl .ndjson                lines, one record each; they end at \\n only
    .json                         a list of records, lines of records, or one record
    .csv .tsv                     one record a row, its cells as strings
    .tar                          a WebDataset: members with one key are a record
    .parquet                      one record a row
    .arrow                        Arrow IPC, file or stream, one record a row
    a folder with state.json      datasets.Dataset.save_to_disk
    other folders, globs          every file of a kind above in them, by name
    URLs                          copied first, see prep/rows/remote.py

Those of the first four lines may be compressed: .gz, .zst, .xz, .bz2. The libraries that read tables are loaded in a
child only.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmms.configs.errors import ConfigError, SourceError, refuse_file_limit
from lmms.configs.files import at_home
from lmms.configs.settings.sources import (
    DEFAULT_CHOICE,
    DEFAULT_READING,
    NO_RECORD_SETTINGS,
    Choice,
    Reading,
    RecordConfig,
    SourceConfig,
    decide_choice,
    decide_reading,
)
from lmms.configs.source_list import expand_sources
from lmms.prep.choice.filter import filter_columns
from lmms.prep.choice.first import first_records
from lmms.prep.media.roots import MediaRoot, media_roots
from lmms.prep.records.forms import FORMS, columns_read, find_form, form_columns
from lmms.prep.records.forms.fields import check_fields_map, column_of, pick_fields
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import Reject
from lmms.prep.rows.child import ReadTable, table_reader
from lmms.prep.rows.chunk import Chunk, Packed, Rows, TarRow
from lmms.prep.rows.find import FileSet, Unread, find_files
from lmms.prep.rows.json_list import read_json
from lmms.prep.rows.kinds import TABLES, Kind
from lmms.prep.rows.lines import check_pointer, is_blank, read_lines
from lmms.prep.rows.memory import memory_rows
from lmms.prep.rows.nulls import without_struct_nulls
from lmms.prep.rows.remote import fetch_files, is_url
from lmms.prep.rows.tar import read_tar, with_members

if TYPE_CHECKING:
    from lmms.prep.records.document import Document
    from lmms.prep.records.record import Record

FIRST_RECORDS = 16
"""Records of a source from which its form is found."""
BLANK = object()
"""The value of a line of white space: skipped, not rejected."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input: a file, the files of a saved Hugging Face data set, or records in memory."""

    name: str
    """Name that the user gave; the ledger, the manifest and `lmms inspect` show it."""
    files: tuple[Path, ...]
    """Empty where the records are in memory."""
    kind: Kind
    roots: tuple[Path, ...]
    """Folders that image paths are relative to, tried in order, and may not leave."""
    reading: Reading = DEFAULT_READING
    """How its records are read."""
    choice: Choice = DEFAULT_CHOICE
    """Which of its records are taken."""
    entry: int = 0
    """Place of its entry in the user's list of sources: an entry may have several files."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """The settings of its entry."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table that are converted; of other columns only the name is used."""
        return tuple(dict.fromkeys((*columns_read(self.reading), *self.chosen_by)))

    @property
    def chosen_by(self) -> tuple[str, ...]:
        """Columns that decide which records are taken."""
        return columns_of_choice(self.choice)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.files)


def find_sources(
    configs: Sequence[SourceConfig | str],
    media_root: MediaRoot,
    base: RecordConfig = NO_RECORD_SETTINGS,
    fetched: Path | None = None,
) -> tuple[list[Source], Unread]:
    """The sources behind paths, folders, globs and URLs, and what is not read there.

    A file that is reached twice, also by a link or as a hard link, is one source. They come in the order given, by name
    within a folder or glob. base: settings of the build, for what a source does not set itself. fetched: folder for
    copies of files behind URLs, which is there as long as the sources are read. ConfigError for a file that two entries
    read in different ways, and for two sources of one name.
    """
    sources: dict[tuple[int, int], Source] = {}
    unread: Unread = Counter()
    for entry, config in enumerate(expand_sources(configs)):
        reading, choice = decide_reading(config, base), decide_choice(config, base)
        columns_of_choice(choice)  # its faults before anything is read
        check_fields_map(reading.fields, form_columns(reading.form))
        file_sets, unread_here = _files_at(config.path, fetched)
        unread += unread_here
        for files in file_sets:
            _check_type(files, config.data_type)
            name = files.name if config.name is None else _named(config.name, files, file_sets)
            roots = media_roots(config.own_root or media_root, files.folder)
            source = Source(name, files.files, files.kind, roots, reading, choice, entry, config.given)
            status = files.files[0].stat()
            first = sources.setdefault((status.st_dev, status.st_ino), source)
            _check_same(first, source, config.path)
    _check_names(list(sources.values()))
    return list(sources.values()), unread


def columns_of_choice(choice: Choice) -> tuple[str, ...]:
    """The columns that decide which records are taken. ConfigError for a filter or a path that is none."""
    by_filter = filter_columns(choice.filter) if choice.filter else ()
    return (*by_filter, *([column_of(choice.eval_by)] if choice.eval_by else []))


def _files_at(path: str, fetched: Path | None) -> tuple[list[FileSet], Unread]:
    if not is_url(path):
        return find_files(at_home(path))
    assert fetched is not None
    return fetch_files(path, fetched)


def _check_same(first: Source, again: Source, path: str) -> None:
    """ConfigError if a file comes again with other settings: which of the two are meant?"""
    names = sorted({*first.given, *again.given})
    differing = [name for name in names if first.given.get(name) != again.given.get(name)]
    if differing:
        name = differing[0]
        values = f"{first.given.get(name, 'not set')} and {again.given.get(name, 'not set')}"
        raise ConfigError(
            f"source {path}: {again.files[0]} is also read by another source, and the two differ in {name}: {values};"
            " expected one source for each file (with repeat a source counts several times)"
        )


def _check_names(sources: Sequence[Source]) -> None:
    counts = Counter(source.name for source in sources)
    for name in (name for name, count in counts.items() if count > 1):
        files = " and ".join(str(source.files[0]) for source in sources if source.name == name)
        raise ConfigError(f"{files} have the same name {name}; expected a name of its own for each source")


def _check_type(files: FileSet, data_type: str | None) -> None:
    """SourceError if the file is not of the kind that its entry says."""
    kind = "jsonl" if files.kind == "json" else files.kind
    if data_type and kind != ("jsonl" if data_type == "json" else data_type):
        raise SourceError(f"{files.name}: data_type says {data_type}, but the file is read as {files.kind}")


def _named(name: str, files: FileSet, all_files: Sequence[FileSet]) -> str:
    """The name that the user gave, with the place of the file where the user's path has several files."""
    if len(all_files) == 1:
        return name
    folder = os.path.commonpath([Path(each.name).parent for each in all_files])
    return f"{name}/{Path(files.name).relative_to(folder).as_posix()}"


def memory_source(media_root: MediaRoot, base: RecordConfig) -> Source:
    """The source of records in memory: their image paths are relative to media_root, or to the working folder."""
    roots = media_roots(media_root, Path())
    return Source("memory", (), "memory", roots, decide_reading(base), decide_choice(base), entry=-1)


def with_forms(sources: Sequence[Source]) -> list[Source]:
    """The files, each with the form of its records: the form that the user named, or that of its first records.

    SourceError for a source whose first records have no known form.
    """
    with table_reader() as read_table:
        return [
            source if source.reading.form else _with_form(source, _first_records(source, read_table))
            for source in sources
        ]


def memory_with_form(source: Source, chunks: Iterator[Chunk]) -> tuple[Source, Iterator[Chunk]]:
    """The source of records in memory with their form, see with_forms, and all of its chunks."""
    if source.reading.form:
        return source, chunks
    first = list(islice(chunks, 1))
    return _with_form(source, _records(first, source.columns)), chain(first, chunks)


def _first_records(source: Source, read_table: ReadTable) -> list[Mapping[str, Any]]:
    """The first records of a source: those of its first file that has records."""
    for file in source.files:
        rows = _rows_of(file, source, read_table, FIRST_RECORDS)
        # The answer about a table is read to its end, see table_reader.
        first = [part for part, _ in (rows if source.kind in TABLES else islice(rows, 1))]
        records = _records([Chunk(0, 0, part, 0) for part in first], source.columns)
        if records:
            return records
    return []


def _records(chunks: Sequence[Chunk], columns: Collection[str]) -> list[Mapping[str, Any]]:
    values = (value for chunk in chunks for _, value in chunk_values(chunk, columns))
    return list(islice((value for value in values if isinstance(value, Mapping)), FIRST_RECORDS))


def _with_form(source: Source, records: Sequence[Mapping[str, Any]]) -> Source:
    form = find_form([pick_fields(record, source.reading.fields) for record in records]) if records else "openai"
    if form is None:
        columns = ", ".join(dict.fromkeys(str(name) for record in records for name in record))
        raise SourceError(
            f"{source.name}: no form fits its first records, which have the columns {columns or 'none'}; expected those"
            f" of {', '.join(FORMS)}. Name the form with form: NAME, or map its columns to those of a form, such as"
            " fields: {messages: $.data.turns}"
        )
    return replace(source, reading=replace(source.reading, form=form))


def memory_chunks(index: int, records: Any) -> Iterator[Chunk]:
    """Records in memory as chunks, see memory_rows."""
    row = 0
    for rows in memory_rows(records):
        yield Chunk(index, row, rows, 0)
        row += len(rows)


def read_records(
    sources: Sequence[SourceConfig | str], media_root: MediaRoot = None, base: RecordConfig = NO_RECORD_SETTINGS
) -> "Iterator[tuple[Source, int, Record | Document | Reject]]":
    """Every record of some sources, as a build reads them: (source, row, what the row holds).

    sources, media_root: as in PrepConfig. base: settings for sources that do not set them. SourceError when a file
    cannot be read to its end.
    """
    from lmms.prep.records.read import read_record

    with TemporaryDirectory(prefix="lmms-sources-") as fetched:
        files, _ = find_sources(sources, media_root, base, Path(fetched))
        files = with_forms(files)
        for chunk in read_chunks(files):
            source = files[chunk.source]
            for row, value in chunk_values(chunk, source.columns):
                if value is BLANK:
                    continue
                try:
                    yield source, row, value if isinstance(value, Reject) else read_record(value, source.reading)
                except Reject as reject:
                    yield source, row, reject


def read_chunks(sources: Sequence[Source]) -> Iterator[Chunk]:
    """The rows of files, as chunks. SourceError when a file cannot be read to its end."""
    with table_reader() as read_table:
        for _, group in groupby(enumerate(sources), lambda numbered: numbered[1].entry):
            numbered = list(group)
            all_chunks = (chunk for index, source in numbered for chunk in source_chunks(index, source, read_table))
            with closing(all_chunks) as chunks:
                yield from first_records(chunks, numbered[0][1].choice.max_records)


def source_chunks(index: int, source: Source, read_table: ReadTable) -> Iterator[Chunk]:
    """The rows of one source, as chunks; see read_chunks, and table_reader for `read_table`."""
    row = read_before = 0
    for file in source.files:
        for rows, position in _rows_of(file, source, read_table):
            yield Chunk(index, row, rows, read_before + position)
            row += len(rows)
        read_before += file.stat().st_size


def _rows_of(file: Path, source: Source, read_table: ReadTable, most: int | None = None) -> Iterator[tuple[Rows, int]]:
    """The rows of each chunk, and the position in the file after them. most: see ReadTable."""
    row = 0
    try:
        check_pointer(file)
        reader = (
            read_table(source.kind, file, source.columns, most) if source.kind in TABLES else _reader(file, source.kind)
        )
        for rows, position in reader:
            yield rows, position
            row += len(rows)
    except OSError as error:
        refuse_file_limit(error)
        raise SourceError(f"{file}: cannot be read past row {row} ({error}); the file is damaged or cut off") from error


def _reader(file: Path, kind: Kind) -> Iterator[tuple[Rows, int]]:
    if kind == "tar":
        return read_tar(file)
    return read_json(file) if kind == "json" else read_lines(file)


def chunk_values(chunk: Chunk, columns: Collection[str]) -> Iterator[tuple[int, Any]]:
    """(row, value) of each row: a JSON value, a dict of columns, a Reject, or BLANK.

    columns: those of a table that are converted; another column has True where it holds a value.
    """
    for row, value in enumerate(islice(_values(chunk.rows, columns), chunk.most), chunk.first_row):
        yield row, _parsed(value)


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
