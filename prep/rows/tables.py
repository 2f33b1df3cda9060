"""A table -> its rows, by kind. This module is imported in the child that reads tables, see prep/rows/child.py."""

from collections.abc import Iterator
from pathlib import Path

from lmms.prep.rows.arrow import read_arrow
from lmms.prep.rows.chunk import Rows
from lmms.prep.rows.csv_table import read_csv
from lmms.prep.rows.kinds import Kind
from lmms.prep.rows.parquet import read_parquet


def read_table(kind: Kind, file: Path) -> Iterator[tuple[Rows, int]]:
    """The rows of each chunk, and the position in the file after them. OSError for a damaged or cut-off file."""
    if kind in ("csv", "tsv"):
        return read_csv(file, "," if kind == "csv" else "\t")
    return read_parquet(file) if kind == "parquet" else read_arrow(file)
