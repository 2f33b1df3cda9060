"""CSV and TSV files -> the rows of their chunks: dicts of strings by the names of the first line.

A quote at the start of a cell opens the cell, and the next single quote closes it; a quote anywhere else is text. A row
may go over several lines. We read cells ourselves: the module csv does not tell "", a text, from an empty cell, which
is null, and polars refuses the whole file for one row with a cell too many, or with 5" in a cell.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from lmms.configs.words import counted
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import MOST_BYTES, in_chunks
from lmms.prep.rows.columns import check_names
from lmms.prep.rows.lines import read_lines

Cells: TypeAlias = "list[bytes | None]"

_QUOTED = re.compile(rb'((?:[^"]++|"")*+)("?)')
"""What a line has of a quoted cell, and the closing quote if it stands in this line."""


def read_csv(file: Path, separator: bytes, columns: Collection[str]) -> Iterator[tuple[list[Any], int]]:
    """The rows of each chunk, and the position in the file after them. An empty cell is null.

    The cells of a column `weight` are numbers, all others strings. A row with more or fewer cells than the first line,
    or with a text that is not UTF-8, is a Reject; a blank line is b"".
    columns: those that are read. OSError if one of them is there twice, for a file without a first line, or with a
    quoted cell that has no end or goes on behind its closing quote.
    """
    return in_chunks(_records(file, separator, columns))


def _records(file: Path, separator: bytes, columns: Collection[str]) -> Iterator[tuple[Any, int, int]]:
    names: Sequence[str] | None = None
    for line, cells, size, position in _rows(file, separator):
        if names is not None:
            yield _record(names, cells, line) if cells else b"", size, position
        elif cells:
            names = _names(cells, columns)
    if names is None:
        raise OSError("no line with the names of the columns")


def _rows(file: Path, separator: bytes) -> Iterator[tuple[int, Cells, int, int]]:
    """(number of the first line, cells, bytes, position in the file) of each row; a blank line has no cells."""
    first = size = 0
    cells: Cells = []
    opened: list[bytes] | None = None
    lines = ((line, position) for lines, position in read_lines(file) for line in lines)
    for number, (line, position) in enumerate(lines, 1):
        if opened is None:
            first, size, cells = number, 0, []
        size += len(line)
        try:
            more, opened = _cells(line, separator, opened)
        except ValueError as error:
            raise OSError(f"line {number}: {error}") from None
        cells += more
        if opened is None:
            yield first, cells, size, position
        elif size > MOST_BYTES:
            break
    if opened is not None:
        raise OSError(f"line {first}: a quote opens a cell and none closes the cell")


def _cells(line: bytes, separator: bytes, opened: list[bytes] | None) -> tuple[Cells, list[bytes] | None]:
    """The cells that end in this line, and what there is of a quoted cell that does not end.

    opened: what earlier lines have of such a cell; None at the start of a row. ValueError for text behind a cell's end.
    """
    cells: Cells = []
    at, stop = 0, len(line) - line.endswith(b"\r")
    if opened is None and b'"' not in line:
        return [cell or None for cell in line[:stop].split(separator)] if stop else [], None
    while True:
        if opened is None and line.startswith(b'"', at):
            opened, at = [], at + 1
        if opened is not None:
            match = _QUOTED.match(line, at)
            assert match is not None
            opened.append(match[1])
            if not match[2]:
                return cells, [*opened, b"\n"]
            cells.append(b"".join(opened).replace(b'""', b'"'))
            opened, at = None, match.end()
        else:
            end = line.find(separator, at, stop)
            end = stop if end < 0 else end
            cells.append(line[at:end] or None)
            at = end
        if at >= stop:
            return cells, None
        if not line.startswith(separator, at):
            raise ValueError("text behind the quote that closes a cell; a quote within a quoted cell is written twice")
        at += 1


def _names(cells: Cells, columns: Collection[str]) -> Sequence[str]:
    """The names of the columns; a name that stands again gets a number, so that no column replaces another."""
    if any(re.search(rb"\r(?!\n)", cell) for cell in cells if cell):
        raise OSError("the lines end with carriage returns alone, expected line feeds")
    try:
        texts = ["" if cell is None else cell.decode() for cell in cells]
    except UnicodeDecodeError as error:
        raise OSError(f"the names of the columns are not UTF-8 ({error.reason})") from error
    check_names(texts, columns)
    counts: Counter[str] = Counter()
    unique = []
    for text in texts:
        unique.append(f"{text}_duplicated_{counts[text] - 1}" if counts[text] else text)
        counts[text] += 1
    return unique


def _record(names: Sequence[str], cells: Cells, line: int) -> dict[str, Any] | Reject:
    if len(cells) != len(names):
        message = f"line {line} has {counted(len(cells), 'cell')}, expected {len(names)} as in the first line"
        return Reject("cell_count", message)
    try:
        row: dict[str, Any] = {
            name: None if cell is None else cell.decode() for name, cell in zip(names, cells, strict=True)
        }
    except UnicodeDecodeError as error:
        return Reject("not_utf8", f"line {line}: a cell is not UTF-8 ({error.reason})")
    return {**row, "weight": _number(row["weight"])} if "weight" in row else row


def _number(cell: str | None) -> Any:
    """The number that a cell holds, else its text, which the parser of the record rejects."""
    try:
        return None if cell is None else float(cell)
    except ValueError:
        return cell
