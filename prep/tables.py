"""The Parquet tables of a shard folder, by the columns of the contract."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_TYPES = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "list<int32>": pa.list_(pa.int32()),
}


def write_rows(path: Path, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows (dicts by column name) as one Parquet file."""
    write_columns(path, columns, {name: [row[name] for row in rows] for name in columns})


def write_columns(path: Path, columns: Mapping[str, str], values: Mapping[str, Any]) -> None:
    """Write columns (lists or numpy arrays by name) as one Parquet file."""
    schema = pa.schema([(name, _TYPES[kind]) for name, kind in columns.items()])
    arrays = [pa.array(values[name], schema.field(name).type) for name in columns]
    pq.write_table(pa.table(arrays, schema=schema), path, compression="zstd")
