"""Files of chat records -> chunks of raw rows, in one order, with bounded memory.

    .jsonl .jsonl.gz .jsonl.zst   one record a line; lines end at \\n only
    .parquet                      one record a row
    .arrow                        Arrow IPC, file or stream, one record a row
    a folder with state.json      datasets.Dataset.save_to_disk
    other folders, globs          every file of a kind above in them, by name

A chunk is cut by rows and bytes of the input alone, so the same input gives the same chunks for any number of workers.
"""

import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lmms.configs.contract.manifest import MANIFEST_NAME
from lmms.configs.errors import SourceError
from lmms.configs.files import PART_ENDING
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import Reject

Kind = Literal["jsonl", "parquet", "arrow"]
KINDS: Mapping[str, Kind] = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".jsonl.zst": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}

CHUNK_ROWS, CHUNK_BYTES = 512, 8 * 2**20
_BOM = b"\xef\xbb\xbf"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"

USED_COLUMNS = ("messages", "images", "weight", "tools", "videos", "audios", "text")
"""Columns of a table that are converted; of the others only the names matter."""

REJECTS_ENDING = ".rejects.parquet"
"""Ending of the ledger that a build leaves beside its output when it stops for too many rejects."""
OWN_ENDINGS = (REJECTS_ENDING, PART_ENDING)
"""What a build leaves beside its output; a folder of sources that holds it does not mean it."""

BLANK = object()
"""The value of a line of white space: skipped, not rejected."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input: a file, or the files of a saved Hugging Face data set."""

    name: str
    """As the user would name it; stands in the ledger, the manifest and inspect."""
    files: tuple[Path, ...]
    kind: Kind
    root: Path
    """Folder that image paths are relative to and may not leave."""

    @property
    def bytes(self) -> int:
        """Size on disk."""
        return sum(file.stat().st_size for file in self.files)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of one source, still raw."""

    source: int
    first_row: int
    rows: Sequence[bytes] | pa.RecordBatch
    file_bytes: int
    """Bytes of the source's files read so far: progress."""


def find_sources(patterns: Sequence[str], media_root: str | None) -> list[Source]:
    """The sources behind paths, folders and globs, each once: in the order given, by name within a folder or glob."""
    found: dict[Path, Source] = {}
    for pattern in patterns:
        is_glob = glob.has_magic(pattern) and not Path(pattern).exists()
        paths = sorted(glob.glob(pattern, recursive=True)) if is_glob else [pattern]  # noqa: PTH207
        sources = [source for path in paths for source in _sources_at(Path(path), media_root)]
        if not sources:
            raise SourceError(f"{pattern}: no file of chat records there; expected {', '.join(KINDS)}")
        for source in sources:
            found.setdefault(source.files[0].resolve(), source)
    return list(found.values())


def read_chunks(index: int, source: Source) -> Iterator[Chunk]:
    """The rows of a source, as chunks. SourceError when a file cannot be read to its end."""
    row = 0
    read_before = 0
    for file in source.files:
        reader = {"jsonl": _read_lines, "parquet": _read_parquet, "arrow": _read_arrow}[source.kind]
        try:
            for rows, position in reader(file):
                yield Chunk(index, row, rows, read_before + position)
                row += len(rows)
        except (OSError, EOFError, pa.ArrowException) as error:
            raise SourceError(
                f"{file}: cannot be read past row {row} ({error}); the file is damaged or cut off"
            ) from error
        read_before += file.stat().st_size


def chunk_values(chunk: Chunk) -> Iterator[tuple[int, Any]]:
    """(row, value) of each row: a JSON value, a dict of columns, a Reject, or BLANK."""
    if isinstance(chunk.rows, pa.RecordBatch):
        yield from enumerate(_table_values(chunk.rows), chunk.first_row)
        return
    for row, line in enumerate(chunk.rows, chunk.first_row):
        if not line.strip(b" \t\r"):
            yield row, BLANK
            continue
        try:
            yield row, parse_line(line)
        except Reject as reject:
            yield row, reject


def _table_values(batch: pa.RecordBatch) -> Iterator[Any]:
    """A dict of columns for each row, or a Reject. Of a column that is not used, only whether it holds something."""
    used = batch.select([name for name in batch.schema.names if name in USED_COLUMNS])
    unused = {
        name: batch.column(name).is_valid().to_pylist() for name in batch.schema.names if name not in USED_COLUMNS
    }
    for i in range(batch.num_rows):
        others = {name: valid[i] or None for name, valid in unused.items()}
        try:
            yield {**used.slice(i, 1).to_pylist()[0], **others} if used.num_columns else others
        except UnicodeDecodeError as error:
            yield Reject("not_utf8", f"a text of the row is not UTF-8 ({error.reason})")
        except (pa.ArrowException, ValueError, OverflowError) as error:
            yield Reject("unreadable_row", f"the row cannot be read: {error}")


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


def _read_lines(file: Path) -> Iterator[tuple[Sequence[bytes], int]]:
    """Lines without their \\n, and the position in the file. A byte order mark is dropped at the start only."""
    with pa.OSFile(str(file)) as raw:
        codec = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
        stream = pa.CompressedInputStream(raw, codec) if codec else raw
        lines: list[bytes] = []
        size = 0
        rest = b""
        first = True
        while block := stream.read(2**20):
            block = block.removeprefix(_BOM) if first else block
            first = False
            *whole, rest = (rest + block).split(b"\n")
            for line in whole:
                lines.append(line)
                size += len(line)
                if len(lines) == CHUNK_ROWS or size >= CHUNK_BYTES:
                    yield lines, raw.tell()
                    lines, size = [], 0
        if rest:
            lines.append(rest)
        if lines:
            yield lines, raw.tell()


def _read_parquet(file: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    with pq.ParquetFile(file) as table:
        rows, total = 0, max(table.metadata.num_rows, 1)
        for group in range(table.num_row_groups):
            # By row group: rows with pictures make the default batch of 64k rows far too large.
            for batch in _split(table.iter_batches(CHUNK_ROWS, row_groups=[group])):
                rows += batch.num_rows
                yield batch, file.stat().st_size * rows // total
        if rows != table.metadata.num_rows:
            raise OSError(f"{rows} rows in its row groups, {table.metadata.num_rows} in its footer")


def _read_arrow(file: Path) -> Iterator[tuple[pa.RecordBatch, int]]:
    with pa.memory_map(str(file)) as mapped:
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
            batches = iter(pa.ipc.open_stream(mapped))
        for batch in batches:
            _check_buffers(batch)
            position = mapped.tell()
            yield from ((part, position) for part in _split(iter([batch])))


def _check_buffers(batch: pa.RecordBatch) -> None:
    """Damage in an Arrow file is memory read out of bounds later on. Text that is not UTF-8 is left to its row."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise


def _split(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Batches of at most CHUNK_ROWS rows and about CHUNK_BYTES bytes."""
    for batch in batches:
        rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES * batch.num_rows // max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)
