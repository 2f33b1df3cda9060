"""CSV and TSV files -> the rows of their chunks, as dicts of strings by the names of the first line. polars reads."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from lmms.configs.errors import SourceError
from lmms.prep.rows.chunk import CHUNK_ROWS, Rows, rows_of_chunk
from lmms.prep.rows.compressed import BLOCK, open_content
from lmms.prep.rows.kinds import COMPRESSED
from lmms.prep.rows.lines import check_text

_MOST_BYTES = 2**31
"""Most content of a compressed file: it is decompressed in memory."""


def read_csv(file: Path, separator: str, most: int | None = None) -> Iterator[tuple[Rows, int]]:
    """The rows of each chunk, and about how many bytes of the file were read so far. An empty cell is null.

    The cells of a column `weight` are numbers, all others strings.

    most: rows enough for a look at the start of the file; None for all of it.
    OSError for a file that is no table: a row with more cells than the first line, or a text that is not UTF-8.
    """
    with open_content(file) as (content, _):
        check_text(file, content.read(BLOCK))
    size = file.stat().st_size
    done = total = 0
    try:
        scan = pl.scan_csv(_content(file), separator=separator, infer_schema=False, glob=False)
        if most is not None:
            yield _rows(scan.head(most).collect()), 0
            return
        total = scan.select(pl.len()).collect().item()
        for frame in scan.collect_batches(chunk_size=CHUNK_ROWS * 8, maintain_order=True):
            for part in frame.iter_slices(CHUNK_ROWS):
                for rows in part.iter_slices(rows_of_chunk(part.height, int(part.estimated_size()))):
                    done += rows.height
                    yield _rows(rows), size * done // max(total, 1)
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error).splitlines()[0]) from error
    if done != total:
        raise OSError(f"{done} rows can be read, {total} are there")


def _rows(frame: pl.DataFrame) -> Rows:
    rows = frame.to_dicts()
    return [{**row, "weight": _number(row["weight"])} for row in rows] if "weight" in frame.columns else rows


def _number(cell: str | None) -> Any:
    """The number that a cell holds, else its text, which the parser of the record rejects."""
    try:
        return None if cell is None else float(cell)
    except ValueError:
        return cell


def _content(file: Path) -> Path | io.BytesIO:
    if file.suffix.lower() not in COMPRESSED:
        return file
    with open_content(file) as (content, _):
        data = content.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise SourceError(f"{file} has more than {_MOST_BYTES} bytes of content; decompress the file first")
    return io.BytesIO(data)
