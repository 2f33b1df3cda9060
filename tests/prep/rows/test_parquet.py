"""Parquet sources: polars reads, and gives the rows and the chunks that pyarrow's reader gave."""

import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmms.prep.reject import Reject
from lmms.prep.rows import parquet
from lmms.prep.rows.arrow import batch_values, read_row_group, row_groups
from lmms.prep.rows.parquet import read_parquet

TEXTS = pa.array(["a", None, "", "\u2028 ü"])
MESSAGES = pa.array(
    [
        [{"role": "user", "content": [{"type": "text", "text": "x"}, None]}, None],
        None,
        [],
        [{"role": None, "content": []}],
    ]
)
COLUMNS = {
    "nothing": pa.nulls(4),
    "bool": pa.array([True, None, False, True]),
    "int8": pa.array([1, None, -1, 0], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0, 1], pa.uint64()),
    "float32": pa.array([0.1, None, float("inf"), -0.0], pa.float32()),
    "text": TEXTS,
    "large text": TEXTS.cast(pa.large_string()),
    "dictionary": TEXTS.dictionary_encode(),
    "bytes": pa.array([b"\xff", None, b"", b"abc"]),
    "bytes of one size": pa.array([b"ab", None, b"cd", b"ef"], pa.binary(2)),
    "list": pa.array([[1, None], None, [], [2]]),
    "struct": pa.array([{"a": 1, "b": None}, None, {"a": None, "b": "x"}, {"a": 2, "b": ""}]),
    "pictures": pa.array([[{"bytes": b"\x89PNG", "path": None}], None, [], [{"bytes": None, "path": "a.png"}]]),
    "messages": MESSAGES,
    "map": pa.array([[("k", 1)], None, [], [("j", None)]], pa.map_(pa.string(), pa.int64())),
    "time": pa.array([1, None, 2, 3], pa.timestamp("us")),
    "nanoseconds": pa.array([1, None, 1000, 3], pa.timestamp("ns")),
    "decimal": pa.array([Decimal("1.50"), None, Decimal(0), Decimal(1)], pa.decimal128(10, 2)),
    "long decimal": pa.array([Decimal("1.50"), None, Decimal(0), Decimal(1)], pa.decimal256(50, 2)),
}

READ = ("messages", "images")


@pytest.fixture(params=["whole", "a few rows at a time"], autouse=True)
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether every row group is read as a large one."""
    is_large: bool = request.param != "whole"
    if is_large:
        monkeypatch.setattr(parquet, "_PIECE_BYTES", 1)
        monkeypatch.setattr(parquet, "_BATCH_BYTES", 2**17)
    return is_large


def by_pyarrow(file: Path) -> Iterator[list[Any]]:
    """The values of each chunk, row by row by pyarrow."""
    for group, (rows, _) in enumerate(row_groups(file)):
        for batch in read_row_group(file, group, 0, rows):
            yield plain(batch_values(batch, READ))


def by_polars(file: Path) -> Iterator[list[Any]]:
    """The values of each chunk, as a build reads them."""
    for rows, _ in read_parquet(file, READ):
        yield plain(rows if isinstance(rows, list) else batch_values(rows, READ))


def plain(values: Any) -> list[Any]:
    return [(value.reason, value.message) if isinstance(value, Reject) else repr(value) for value in values]


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("name", ["messages", "unused"])
def test_a_column_of_every_kind_is_read_as_by_pyarrow(kind: str, name: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({name: COLUMNS[kind], "images": TEXTS}), tmp_path / "a.parquet")
    assert list(by_polars(tmp_path / "a.parquet")) == list(by_pyarrow(tmp_path / "a.parquet"))


@pytest.mark.parametrize("kind", [kind for kind in COLUMNS if kind not in ("map", "decimal", "long decimal")])
def test_the_kinds_that_data_sets_have_are_read_by_polars(kind: str, tmp_path: Path) -> None:
    used = "unused" if "time" in kind or "nano" in kind else "messages"
    pq.write_table(pa.table({used: COLUMNS[kind]}), tmp_path / "a.parquet")
    assert all(isinstance(rows, list) for rows, _ in read_parquet(tmp_path / "a.parquet", READ))


def picture_table(rows: int, size: int) -> pa.Table:
    """Messages, and pictures of `size` random bytes, each a few bytes longer than the last."""
    rng = np.random.default_rng(0)
    messages = [
        [{"role": "user", "content": "what? " * (i % 40)}, {"role": "assistant", "content": f"{i}"}]
        for i in range(rows)
    ]
    pictures = [[{"bytes": rng.bytes(size + 7 * i), "path": None}] for i in range(rows)]
    return pa.table({"messages": messages, "images": pictures, "other": pa.array(range(rows), pa.int32())})


@pytest.mark.parametrize(("rows", "size", "group"), [(600, 40_000, 530), (1200, 10, 1100), (30, 1_000_000, 30)])
def test_chunks_are_cut_where_pyarrow_cut_them(rows: int, size: int, group: int, tmp_path: Path) -> None:
    """So the fingerprint of the records, which is made chunk by chunk, stays the same."""
    pq.write_table(picture_table(rows, size), tmp_path / "a.parquet", row_group_size=group)
    assert list(by_polars(tmp_path / "a.parquet")) == list(by_pyarrow(tmp_path / "a.parquet"))


def test_a_large_row_group_is_read_in_pieces_with_the_same_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces, since one column has a kind that pyarrow has to read."""
    file = tmp_path / "a.parquet"
    table = picture_table(5000, 30).append_column("when", pa.array(range(5000), pa.timestamp("ns")))
    pq.write_table(table, file, row_group_size=3000)
    whole = list(by_polars(file))
    monkeypatch.setattr(parquet, "_PIECE_BYTES", 100_000)
    assert len(list(parquet._pieces(3000, row_groups(file)[0][1]))) > 2
    assert list(by_polars(file)) == whole == list(by_pyarrow(file))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says how much memory a process held")
def test_of_a_large_row_group_a_few_rows_are_in_memory(tmp_path: Path, large: bool) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(picture_table(600, 400_000), file, write_batch_size=2)
    program = (
        "import re, sys; from pathlib import Path; from lmms.prep.rows import parquet\n"
        "held = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024\n"
        "parquet._PIECE_BYTES = int(sys.argv[2])\n"
        "before = held()\n"
        "read = lambda most: parquet.read_parquet(Path(sys.argv[1]), ['messages', 'images'], most)\n"
        "rows = sum(len(part) for most in (16, None) for part, _ in read(most))\n"
        "print(rows, held() - before)"
    )
    command = [sys.executable, "-c", program, str(file), str(1 if large else 2**40)]
    rows, grown = map(int, subprocess.run(command, capture_output=True, check=True).stdout.split())
    assert rows == 616
    assert (grown < 300) == large  # MiB; the file has 240


@pytest.mark.parametrize("dictionary", [True, False])
def test_a_text_that_is_not_utf8_costs_its_row_alone(dictionary: bool, tmp_path: Path) -> None:
    """polars gives no row of its page or dictionary."""
    texts = [b"text %d" % i for i in range(1500)]
    texts[700] = b"\xff\xfe"
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
    column = pa.Array.from_buffers(pa.string(), 1500, [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))])
    pq.write_table(pa.table({"messages": column}), tmp_path / "a.parquet", use_dictionary=dictionary)
    with pytest.raises(pl.exceptions.ComputeError, match="UTF-8"):
        pl.read_parquet(tmp_path / "a.parquet")
    values = [value for chunk in by_polars(tmp_path / "a.parquet") for value in chunk]
    assert [i for i, value in enumerate(values) if value[0] == "not_utf8"] == [700]
    assert len(values) == 1500


def test_a_flipped_byte_is_an_error_or_another_value_and_never_fewer_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(picture_table(40, 50), file, compression="zstd")
    data = file.read_bytes()
    stopped = 0
    for place in range(4, len(data), len(data) // 60):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            assert sum(map(len, by_polars(file))) == 40
        except OSError:
            stopped += 1
    assert stopped > 10
