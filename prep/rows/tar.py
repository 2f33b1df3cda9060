"""A WebDataset: a tar file whose members with one key are one record -> the members of each record.

The key of `a/0001.left.jpg` is `a/0001`, its ending `left.jpg`. The record is the member that ends in `.json`; text
members are columns by their endings, and all others are media. Nothing is written to disk.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from lmms.configs.errors import SourceError
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import MOST_BYTES, TarRow, in_chunks
from lmms.prep.rows.compressed import BLOCK, open_content

_END = bytes(tarfile.BLOCKSIZE)
_TEXT = ("txt", "text", "cls", "caption")
_OTHER_MEDIA = {
    **dict.fromkeys(("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac", "aif", "aiff"), "audios"),
    **dict.fromkeys(("mp4", "webm", "avi", "mov", "mkv"), "videos"),
}
"""Last part of an ending -> the column for such members; all others are pictures."""
_MEDIA_KEYS = ("image", "images", "video", "videos", "audio", "audios", "path")
"""Keys under which a record names members."""


def read_tar(file: Path) -> Iterator[tuple[list[TarRow], int]]:
    """The records of each chunk, and the position in the file after them. OSError for a damaged or cut-off file."""
    return in_chunks(_rows(file))


def with_members(record: Mapping[str, Any], row: TarRow) -> dict[str, Any]:
    """A record with the bytes of members in place of their names.

    Media of a kind of which the record names none are its `images`, `audios` or `videos`.
    """
    texts = {ending: _decoded(text, ending) for ending, text in row.texts.items() if ending not in record}
    by_name = {name: data for path, data in row.media.items() for name in (path, path.rpartition("/")[2])}
    placed = {key: _placed(value, by_name, key) for key, value in record.items()}
    columns: dict[str, list[bytes]] = {}
    for name, data in row.media.items():
        columns.setdefault(_column(name), []).append(data)
    for named in {_column(name) for key, value in record.items() for name in _names(value, by_name, key)}:
        columns.pop(named, None)
    return {**columns, **placed, **texts}


def _column(name: str) -> str:
    return _OTHER_MEDIA.get(name.rpartition(".")[2].lower(), "images")


def _names(value: Any, by_name: Mapping[str, bytes], key: str) -> Iterator[str]:
    """The members that a value names."""
    if isinstance(value, str) and key in _MEDIA_KEYS and value in by_name:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _names(item, by_name, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _names(item, by_name, name)


def _decoded(text: bytes, ending: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"byte {error.start} of the member .{ending} is not UTF-8 ({error.reason})") from None


def _placed(value: Any, by_name: Mapping[str, bytes], key: str) -> Any:
    if isinstance(value, str):
        return by_name.get(value, value) if key in _MEDIA_KEYS else value
    if isinstance(value, list):
        return [_placed(item, by_name, key) for item in value]
    if isinstance(value, dict):
        return {name: _placed(item, by_name, name) for name, item in value.items()}
    return value


def _rows(file: Path) -> Iterator[tuple[TarRow, int, int]]:
    row: TarRow | None = None
    size = position = 0
    for name, data, position in _members(file):
        folder, slash, last = name.rpartition("/")
        stem, _, ending = last.partition(".")
        key = folder + slash + stem
        if row and row.key != key:
            yield row, size, position
            row, size = None, 0
        row = row or TarRow(key)
        size += len(data)
        if size > MOST_BYTES:
            raise SourceError(f"{file}: the members of record {key} have more than {MOST_BYTES} bytes")
        ending = ending.lower()
        if ending == "json":
            row.record = data
        elif ending in _TEXT:
            row.texts[ending] = data
        else:
            row.media[name] = data
    if row:
        yield row, size, position


def _members(file: Path) -> Iterator[tuple[str, bytes, int]]:
    """Name and content of each member that is a file, and the position in the tar file after it."""
    try:
        with open_content(file) as (content, position):
            # Buffered: a step back of one block must not decompress the file again.
            stream = io.BufferedReader(cast(Any, content), BLOCK)
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while member := tar.next():
                    cast(Any, tar).members.clear()  # tarfile would keep all of them
                    if not member.isfile() or Path(member.name).name.startswith("."):
                        continue
                    if member.size > MOST_BYTES:
                        raise SourceError(f"{file}: {member.name} has more than {MOST_BYTES} bytes")
                    yield member.name, _content(tar, member), position()
                stream.seek(tar.offset)
                _check_end(stream)
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise OSError(str(error)) from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    assert opened is not None
    data = opened.read()
    if len(data) != member.size:
        raise OSError(f"{member.name} is cut off")
    return data


def _check_end(stream: BinaryIO) -> None:
    """tarfile takes a damaged header for the end."""
    block = stream.read(len(_END))
    if block != _END:
        raise OSError("a header is damaged" if block else "the tar file has no end mark")
