"""A .json file -> the text of each record: a list of records, lines of JSON, or an object, which is one record.

A list is cut at its commas by brackets and strings alone, a MiB at a time; each record is parsed where lines are.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lmms.configs.errors import SourceError
from lmms.prep.rows.chunk import MOST_BYTES, in_chunks
from lmms.prep.rows.compressed import BLOCK, open_content
from lmms.prep.rows.lines import BOM, check_text, read_lines

_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|(\\?\Z))|[\[{]|[\]}]|,', re.DOTALL)
"""A string (group 1: the data end before the string does), a bracket, or a comma."""
_SECOND = re.compile(rb"\}[ \t\r]*\n\s*\{")
"""An object behind the end of another: no string of JSON holds a line's end, so both braces are brackets."""
_BLANK = b" \t\r\n"


def read_json(file: Path) -> Iterator[tuple[list[bytes], int]]:
    """The text of each record, a chunk at a time, and the position in the file. SourceError if a list has no end."""
    head = _head(file)
    check_text(file, head)
    start = head.removeprefix(BOM).lstrip(_BLANK)
    if start.startswith(b"["):
        return in_chunks(_elements(file))
    return in_chunks(_whole(file)) if _is_one_object(start) else read_lines(file)


def holds_records(file: Path) -> bool:
    """Whether a .json file is a list of records or has several lines of them, by its first MiB."""
    start = _head(file).removeprefix(BOM).lstrip(_BLANK)
    if start.startswith(b"["):
        return start[1:].lstrip(_BLANK)[:1] in (b"{", b"]", b"")
    lines = start.split(b"\n", 2)
    return len(lines) > 1 and lines[1].startswith(b"{") and not _is_one_object(start)


def _head(file: Path) -> bytes:
    with open_content(file) as (content, _):
        return content.read(BLOCK)


def _is_one_object(start: bytes) -> bool:
    """Whether an object goes on after its first line."""
    line = start.partition(b"\n")[0].rstrip()
    try:
        json.loads(line)
    except ValueError:
        return line.endswith((b"{", b"[", b","))
    return False


def _whole(file: Path) -> Iterator[tuple[bytes, int, int]]:
    with open_content(file) as (content, position):
        text = content.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise SourceError(f"{file} is an object of more than {MOST_BYTES} bytes, expected a list of records")
        if _SECOND.search(text):
            raise SourceError(
                f"{file} holds several JSON objects, each over several lines; expected a list of records, or a"
                " record on each line: `jq -s . FILE` writes the list"
            )
        yield text.removeprefix(BOM).strip(_BLANK), len(text), position()


def _elements(file: Path) -> Iterator[tuple[bytes, int, int]]:
    """The text of each element of the list."""
    with open_content(file) as (content, position):
        data = content.read(BLOCK).removeprefix(BOM).lstrip(_BLANK)
        start = place = 1  # of the element; up to here there is no unread token
        depth = row = 0
        while True:
            for token in _TOKEN.finditer(data, place):
                if token[1] is not None:
                    break
                place = token.end()
                kind = data[place - 1]
                if kind in b"[{":
                    depth += 1
                elif kind in b"]}":
                    depth -= 1
                if depth < 0 or (depth == 0 and kind in b","):
                    element = data[start : place - 1].strip(_BLANK)
                    if element or depth == 0 or row:
                        yield element or b",", len(element), position()  # no record between two commas
                    start, row = place, row + 1
                    if depth < 0:
                        _check_end(file, data[place:], content.read(BLOCK))
                        return
            data, place, start = data[start:], place - start, 0
            if len(data) > MOST_BYTES:
                raise SourceError(f"{file}: record {row} of its list has more than {MOST_BYTES} bytes")
            # As many bytes again as there are: a long record is not read over and over.
            block = content.read(max(BLOCK, len(data)))
            if not block:
                raise OSError("the list has no end")
            data += block


def _check_end(file: Path, rest: bytes, following: bytes) -> None:
    if (rest + following).strip(_BLANK):
        raise SourceError(f"{file} goes on after the end of its JSON list, expected one list")
