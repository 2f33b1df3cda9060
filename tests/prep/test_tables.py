"""The tables of a shard folder: the same bytes on any machine, read by any Parquet reader."""

import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from lmms.configs.contract.pack import PACK_TABLE
from lmms.prep.tables import write_columns, write_rows

WRITE = """
import sys
from pathlib import Path
import numpy as np, polars as pl
from lmms.prep.tables import write_columns
assert pl.thread_pool_size() == int(sys.argv[2])
rows = 600_000  # three row groups
columns = {"a": "int64", "b": "float64", "c": "string", "d": "list<int32>"}
number = np.arange(rows)
lists = pl.Series(number[:, None] % 7).arr.to_list()
values = {"a": number * 31 % 977, "b": np.sqrt(number), "c": (number % 9).astype(str), "d": lists}
write_columns(Path(sys.argv[1]), columns, values)
"""


def test_a_table_has_the_same_bytes_for_any_number_of_threads(tmp_path: Path) -> None:
    tables = []
    for threads in ("1", "3"):
        path = tmp_path / f"{threads}.parquet"
        environment = {**os.environ, "POLARS_MAX_THREADS": threads}
        subprocess.run([sys.executable, "-c", WRITE, path, threads], env=environment, check=True)
        tables.append(path.read_bytes())
    assert pq.read_metadata(tmp_path / "1.parquet").num_row_groups == 3
    assert tables[0] == tables[1]


def test_every_column_of_the_contract_is_read_back_by_another_reader(tmp_path: Path) -> None:
    values = {"uint64": 2**64 - 1, "float64": 0.1, "list<int32>": [3, 1]}
    rows = [{name: values.get(kind, 2**31 - 1) for name, kind in PACK_TABLE.items()}] * 3
    write_rows(tmp_path / "a.parquet", PACK_TABLE, rows)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.to_pylist() == rows
    assert {field.name: str(field.type) for field in table.schema if "list" not in str(field.type)} == {
        name: {"float64": "double"}.get(kind, kind) for name, kind in PACK_TABLE.items() if "list" not in kind
    }


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    write_columns(tmp_path / "a.parquet", {"a": "int32", "b": "string"}, {"a": [], "b": []})
    assert pl.read_parquet(tmp_path / "a.parquet").schema == {"a": pl.Int32(), "b": pl.String()}
