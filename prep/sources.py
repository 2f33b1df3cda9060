"""Files of chat records -> chunks of raw rows, in one order, with bounded memory.

    .jsonl .jsonl.gz .jsonl.zst   one record a line; lines end at \\n only
    .parquet                      one record a row
    .arrow                        Arrow IPC, file or stream, one record a row
    a folder with state.json      datasets.Dataset.save_to_disk
    other folders, globs          every file of a kind above in them, by name

The libraries that read tables are imported where they are used: a build of JSON lines needs none of them.
"""

import glob
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lmms.configs.contract.manifest import MANIFEST_NAME
from lmms.configs.errors import SourceError, refuse_file_limit
from lmms.configs.files import PART_ENDING
from lmms.configs.settings.sources import (
    DEFAULT_READING,
    NO_RECORD_SETTINGS,
    Reading,
    RecordConfig,
    SourceConfig,
    decide_reading,
)
from lmms.configs.source_list import expand_sources
from lmms.prep.records.forms import FORMS, columns_read, find_form
from lmms.prep.records.forms.fields import check_fields_map, pick_fields
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import CHUNK_BYTES, CHUNK_ROWS, Chunk, Rows
from lmms.prep.rows.memory import memory_rows

if TYPE_CHECKING:
    from lmms.prep.records.record import Record

Kind = Literal["jsonl", "parquet", "arrow", "memory"]
KINDS: Mapping[str, Kind] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}

_BOM = b"\xef\xbb\xbf"

REJECTS_ENDING = ".rejects.parquet"
"""Ending of the ledger that a build leaves next to its output when it stops for too many rejects."""
OWN_ENDINGS = (REJECTS_ENDING, PART_ENDING)
"""Endings of files that a build leaves next to its output; they are not sources."""

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
    root: Path
    """Folder that image paths are relative to and may not leave."""
    reading: Reading = DEFAULT_READING
    """How its records are read."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table that are converted; of other columns only the name is used."""
        return columns_read(self.reading)

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.files)


def find_sources(
    configs: Sequence[SourceConfig | str], media_root: str | None, base: RecordConfig = NO_RECORD_SETTINGS
) -> list[Source]:
    """The sources behind paths, folders and globs, each once: in the order given, by name within a folder or glob.

    base: settings of the build, for what a source does not set itself.
    """
    sources_by_file: dict[Path, Source] = {}
    for config in expand_sources(configs):
        pattern, reading = config.path, decide_reading(config, base)
        check_fields_map(reading.fields)
        is_glob = glob.has_magic(pattern) and not Path(pattern).exists()
        paths = sorted(glob.glob(pattern, recursive=True)) if is_glob else [pattern]  # noqa: PTH207
        root = config.own_root or media_root
        sources = [source for path in paths for source in _sources_at(Path(path), root)]
        if not sources:
            raise SourceError(f"{pattern}: no file of chat records there; expected {', '.join(KINDS)}")
        for source in sources:
            _check_type(source, config.data_type)
            name = source.name if config.name is None else _named(config.name, source, len(sources))
            sources_by_file.setdefault(source.files[0].resolve(), replace(source, name=name, reading=reading))
    return list(sources_by_file.values())


def _check_type(source: Source, data_type: str | None) -> None:
    """SourceError if the file is not of the kind that its entry says."""
    if data_type and source.kind != ("jsonl" if data_type == "json" else data_type):
        raise SourceError(f"{source.name}: data_type says {data_type}, but the file is read as {source.kind}")


def _named(name: str, source: Source, sources: int) -> str:
    """The name that the user gave, with the file's name where the user's path has several files."""
    return name if sources == 1 else f"{name}/{Path(source.name).name}"


def memory_source(media_root: str | None, base: RecordConfig) -> Source:
    """The source of records in memory: their image paths are relative to media_root, or to the working folder."""
    return Source("memory", (), "memory", Path(media_root or "."), decide_reading(base))


def with_forms(sources: Sequence[Source]) -> list[Source]:
    """The files, each with the form of its records: the form that the user named, or that of its first records.

    SourceError for a source whose first records have no known form.
    """
    return [source if source.reading.form else with_form(source, read_chunks(0, source))[0] for source in sources]


def with_form(source: Source, chunks: Iterator[Chunk]) -> tuple[Source, Iterator[Chunk]]:
    """The source with the form of its records, see with_forms, and all of its chunks."""
    if source.reading.form:
        return source, chunks
    first = next(chunks, None)
    values = [value for _, value in chunk_values(first, source.columns)] if first else []
    records = [value for value in values if isinstance(value, Mapping)][:FIRST_RECORDS]
    form = find_form([pick_fields(record, source.reading.fields) for record in records]) if records else "openai"
    if form is None:
        columns = ", ".join(dict.fromkeys(str(name) for record in records for name in record))
        raise SourceError(
            f"{source.name}: no form fits its first records, which have the columns {columns or 'none'}; expected those"
            f" of {', '.join(FORMS)}. Name the form with form: NAME, or map its columns to those of a form, such as"
            " fields: {messages: $.data.turns}"
        )
    return replace(source, reading=replace(source.reading, form=form)), chain([first] if first else [], chunks)


def memory_chunks(index: int, records: Any) -> Iterator[Chunk]:
    """Records in memory as chunks, see memory_rows."""
    row = 0
    for rows in memory_rows(records):
        yield Chunk(index, row, rows, 0)
        row += len(rows)


def read_records(
    sources: Sequence[SourceConfig | str], media_root: str | None = None, base: RecordConfig = NO_RECORD_SETTINGS
) -> "Iterator[tuple[Source, int, Record | Reject]]":
    """Every record of some sources, as a build reads them: (source, row, what the row holds).

    sources, media_root: as in PrepConfig. base: settings for sources that do not set them. SourceError when a file
    cannot be read to its end.
    """
    from lmms.prep.records.read import read_record

    for index, source in enumerate(with_forms(find_sources(sources, media_root, base))):
        for chunk in read_chunks(index, source):
            for row, value in chunk_values(chunk, source.columns):
                if value is BLANK:
                    continue
                try:
                    yield source, row, value if isinstance(value, Reject) else read_record(value, source.reading)
                except Reject as reject:
                    yield source, row, reject


def read_chunks(index: int, source: Source) -> Iterator[Chunk]:
    """The rows of a source, as chunks. SourceError when a file cannot be read to its end."""
    row = 0
    read_before = 0
    for file in source.files:
        try:
            for rows, position in _reader(source)(file):
                yield Chunk(index, row, rows, read_before + position)
                row += len(rows)
        except (OSError, EOFError) as error:
            if isinstance(error, OSError):
                refuse_file_limit(error)
            raise SourceError(
                f"{file}: cannot be read past row {row} ({error}); the file is damaged or cut off"
            ) from error
        read_before += file.stat().st_size


def _reader(source: Source) -> "Callable[[Path], Iterator[tuple[Rows, int]]]":
    """The function that reads a file of a source: rows of a chunk, and the position in the file after them."""
    if source.kind == "jsonl":
        return _read_lines
    if source.kind == "parquet":
        from lmms.prep.rows.parquet import read_parquet

        return partial(read_parquet, columns=source.columns)
    from lmms.prep.rows.arrow import read_arrow

    return read_arrow


def chunk_values(chunk: Chunk, columns: Collection[str]) -> Iterator[tuple[int, Any]]:
    """(row, value) of each row: a JSON value, a dict of columns, a Reject, or BLANK.

    columns: those of a table that are converted; another column has True where it holds a value.
    """
    for row, value in enumerate(_values(chunk.rows, columns), chunk.first_row):
        yield row, _line_value(value) if isinstance(value, bytes) else value


def _values(rows: Rows, columns: Collection[str]) -> Iterable[Any]:
    if isinstance(rows, list):
        return rows
    from lmms.prep.rows.arrow import batch_values

    return batch_values(rows, columns)


def _line_value(line: bytes) -> Any:
    if not line.strip(b" \t\r"):
        return BLANK
    try:
        return parse_line(line)
    except Reject as reject:
        return reject


def _sources_at(path: Path, media_root: str | None) -> list[Source]:
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    if path.is_file():
        kind = _kind_of(path)
        if kind is None:
            raise SourceError(f"{path}: not a file of chat records; expected {', '.join(KINDS)}")
        return [Source(path.as_posix(), (path,), kind, Path(media_root or path.parent))]
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text())["splits"]
        raise SourceError(
            f"{path} holds the splits {', '.join(splits)}; name the ones to pack, such as {path / splits[0]}"
        )
    if (path / "state.json").is_file():
        return [_saved_dataset(path, media_root)]
    if (path / MANIFEST_NAME).is_file():
        return []  # shards of ours
    children = [child for child in sorted(path.iterdir()) if not child.name.endswith(OWN_ENDINGS)]
    # A link to a folder is not followed: it may lead back here.
    children = [child for child in children if _kind_of(child) or (child.is_dir() and not child.is_symlink())]
    return [source for child in children for source in _sources_at(child, media_root)]


def _kind_of(path: Path) -> Kind | None:
    return next((kind for ending, kind in KINDS.items() if path.name.lower().endswith(ending)), None)


def _saved_dataset(path: Path, media_root: str | None) -> Source:
    try:
        state = json.loads((path / "state.json").read_text())
        files = tuple(path / entry["filename"] for entry in state["_data_files"])
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path / 'state.json'} is not that of a saved data set ({error})") from error
    if state.get("_indices_data_files"):
        raise SourceError(f"{path} holds a selection by index; save it again after .flatten_indices()")
    return Source(path.as_posix(), files, "arrow", Path(media_root or path))


def _read_lines(file: Path) -> Iterator[tuple[list[bytes], int]]:
    """Lines without their \\n, and the position in the file. A byte order mark is dropped at the start only."""
    lines: list[bytes] = []
    size = position = 0
    rest = b""
    first = True
    for block, position in _blocks(file):
        *whole, rest = (rest + (block.removeprefix(_BOM) if first else block)).split(b"\n")
        first = False
        for line in whole:
            lines.append(line)
            size += len(line)
            if len(lines) == CHUNK_ROWS or size >= CHUNK_BYTES:
                yield lines, position
                lines, size = [], 0
    if rest:
        lines.append(rest)
    if lines:
        yield lines, position


def _blocks(file: Path) -> Iterator[tuple[bytes, int]]:
    """The content of a file of lines, decompressed, and the position in the file after each block."""
    codec = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    if codec:
        from lmms.prep.rows.arrow import read_compressed

        yield from read_compressed(file, codec)
        return
    with file.open("rb") as raw:
        while block := raw.read(2**20):
            yield block, raw.tell()
