"""Files of lines -> lines: they end at \\n only. And what else a file may hold that is named as JSON lines."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lmms.configs.errors import SourceError
from lmms.prep.rows.chunk import MOST_BYTES, in_chunks
from lmms.prep.rows.compressed import read_blocks

BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LFS = b"version https://git-lfs.github.com/spec/"
_SPREAD = re.compile(rb'\s*\{[ \t]*\r?\n[ \t]+"')
"""A brace alone on its line, and a key with white space before it on the next."""
_VIDEO = re.compile(rb'(?<!\\)"(?:video|videos|video_url)"\s*:')
"""The key of a video, outside of text."""
VIDEO_BYTES = 2**19
"""What a video weighs in a chunk: 16 of them fill the chunk, so that processes share them, and little is lost."""
_MAGICS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"\xfd7zXZ\x00": ".xz", b"BZh": ".bz2", b"PAR1": ".parquet"}


def read_lines(file: Path) -> Iterator[tuple[list[bytes], int]]:
    """Lines without their \\n, a chunk at a time, and the position in the file. SourceError for a JSON list.

    A byte order mark is dropped at the start only.
    """
    return in_chunks(_lines(file))


def is_blank(line: bytes) -> bool:
    """Whether a line is white space: no record."""
    return not line.strip(b" \t\r")


def check_text(file: Path, head: bytes) -> None:
    """SourceError if these first bytes of a file's content show that the content is no UTF-8 text of records."""
    if head.startswith(_UTF16) or head[:2] in (b"{\0", b"[\0", b"\0{", b"\0["):
        raise SourceError(f"{file} is UTF-16, expected UTF-8; convert the file: iconv -f UTF-16 -t UTF-8")
    ending = next((ending for magic, ending in _MAGICS.items() if head.startswith(magic)), None)
    if ending:
        raise SourceError(f"{file} is a {ending} file by its first bytes; give its name that ending")


def check_pointer(file: Path) -> None:
    """SourceError if Git LFS has left a pointer in place of the file."""
    with file.open("rb") as raw:
        if raw.read(len(_LFS)) == _LFS:
            raise SourceError(f"{file} is a pointer of Git LFS, not the file itself; run `git lfs pull` there")


def _lines(file: Path) -> Iterator[tuple[bytes, int, int]]:
    rest: list[bytes] = []
    size = position = 0
    is_first = True
    for block, position in read_blocks(file):
        content = block
        if is_first:
            check_text(file, block)
            content = block.removeprefix(BOM)
            _refuse_list(file, content)
            _refuse_spread(file, content)
            is_first = False
        first, *others = content.split(b"\n")
        rest.append(first)
        size += len(first)
        if size > MOST_BYTES:
            raise SourceError(f"{file} has a line of more than {MOST_BYTES} bytes, expected a record on each line")
        for following in others:
            line = b"".join(rest)
            yield line, _weight(line), position
            rest, size = [following], len(following)
    line = b"".join(rest)
    if line:
        yield line, _weight(line), position


def _weight(line: bytes) -> int:
    """Bytes of a line, and more for each video that the line names: to decode one takes as long as much text."""
    if b"video" not in line:
        return len(line)
    return len(line) + VIDEO_BYTES * len(_VIDEO.findall(line))


def _refuse_spread(file: Path, content: bytes) -> None:
    """SourceError for a first record that is written over several lines, as people print JSON to read it."""
    if _SPREAD.match(content):
        raise SourceError(
            f"{file}: its first record is spread over several lines, expected a record on each line;"
            " `jq -c . FILE` writes such lines, and a file of one list of records is read as .json"
        )


def _refuse_list(file: Path, head: bytes) -> None:
    """A file that is one JSON list would be a fault in every line, or in one."""
    line, _, others = head.lstrip().partition(b"\n")
    if not line.startswith(b"["):
        return
    try:
        json.loads(line)
    except ValueError:
        is_list = line.strip() == b"[" or line[1:].lstrip().startswith(b"{")
    else:
        is_list = not others.strip()
    if is_list:
        raise SourceError(f"{file} holds a JSON list, expected a record on each line; give the file the ending .json")
