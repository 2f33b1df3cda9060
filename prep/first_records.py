"""The form of each source, from its first records; and records as a build reads them, for programs."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lmms.configs.errors import SourceError
from lmms.configs.settings.sources import (
    NO_RECORD_SETTINGS,
    RecordConfig,
    SourceConfig,
)
from lmms.prep.chunks import BLANK, chunk_values, read_chunks, rows_of
from lmms.prep.media.roots import MediaRoot
from lmms.prep.records.forms import FORMS, find_form
from lmms.prep.records.normal.fields import pick_fields
from lmms.prep.records.record import captions_read
from lmms.prep.reject import Reject
from lmms.prep.rows.child import ReadTable, table_reader
from lmms.prep.rows.chunk import Chunk
from lmms.prep.rows.kinds import TABLES
from lmms.prep.sources import Source, find_sources

if TYPE_CHECKING:
    from lmms.prep.records.document import Document
    from lmms.prep.records.record import Record

FIRST_RECORDS = 16
"""Records of a source from which its form is found."""


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
        rows = rows_of(file, source, read_table, FIRST_RECORDS)
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
        columns = list(dict.fromkeys(str(name) for record in records for name in record))
        advice = (
            captions_read(columns)
            if "txt" in columns
            else f"expected those of {', '.join(FORMS)}. Name the form with form: NAME, or map its columns to those of"
            " a form, such as fields: {messages: $.data.turns}"
        )
        raise SourceError(
            f"{source.name}: no form fits most of its first records, which have the columns"
            f" {', '.join(columns) or 'none'}; {advice}"
        )
    return replace(source, reading=replace(source.reading, form=form))


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
