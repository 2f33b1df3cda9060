"""A table -> its rows, by kind. This module is imported in the child that reads tables, see prep/rows/child.py."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from lmms.prep.rows.arrow import read_arrow
from lmms.prep.rows.chunk import Rows
from lmms.prep.rows.kinds import Kind
from lmms.prep.rows.parquet import read_parquet


def read_table(kind: Kind, file: Path, columns: Sequence[str], most: int | None) -> Iterator[tuple[Rows, int]]:
    """The rows of each chunk, and the position in the file after them. OSError for a damaged or cut-off file.

    columns: those that are converted. most: rows enough for a look at the start of the file; None for all of it.
    """
    if kind == "parquet":
        return read_parquet(file, columns, most)
    return islice(read_arrow(file, columns, most), None if most is None else 1)
