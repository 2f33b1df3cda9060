"""The Parquet tables of a shard folder, by the columns of the contract."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmms.configs.contract.manifest import FETCHED_NAME
from lmms.configs.errors import ConfigError
from lmms.configs.files import at_home

_ROW_GROUP = 2**18
"""Rows of a row group. Set here, so that the bytes of a table do not depend on a default of polars."""


def read_pins(folder: str) -> dict[str, frozenset[str]]:
    """URL -> SHA-256 of the pictures that came over the network into a shard folder. ConfigError if it has none."""
    import polars as pl

    path = Path(at_home(folder)) / FETCHED_NAME
    if not path.is_file():
        raise ConfigError(f"pinned_images: {path} is not there; expected a shard folder with pictures of the network")
    pins: dict[str, frozenset[str]] = {}
    for url, digest in pl.read_parquet(path).select("url", "sha256").iter_rows():
        pins[url] = pins.get(url, frozenset()) | {digest}
    return pins


def write_rows(path: Path, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows (dicts by column name) as one Parquet file."""
    write_columns(path, columns, {name: [row[name] for row in rows] for name in columns})


def write_columns(path: Path, columns: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Write columns (lists or numpy arrays by name) as one Parquet file: the same bytes for any number of threads."""
    import polars as pl

    types = {
        "int32": pl.Int32(),
        "int64": pl.Int64(),
        "uint64": pl.UInt64(),
        "float64": pl.Float64(),
        "string": pl.String(),
        "list<int32>": pl.List(pl.Int32()),
    }
    table = pl.DataFrame([pl.Series(name, values[name], types[kind]) for name, kind in columns.items()])
    table.write_parquet(path, compression="zstd", compression_level=3, row_group_size=_ROW_GROUP)
