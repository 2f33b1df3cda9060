"""CSV and TSV: what a cell is, and a faulty row costs itself."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.reject import REASONS, Reject
from lmms.prep.rows.chunk import CHUNK_ROWS
from lmms.prep.rows.csv_table import read_csv
from tests.kit.folders import tiny_model_folder


def rows(folder: Path, content: bytes | str, separator: bytes = b",") -> list[Any]:
    """The rows, and (reason, message) of a rejected one."""
    file = folder / "a.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    read = [row for part, _ in read_csv(file, separator, ("text",)) for row in part]
    return [(row.reason, row.message) if isinstance(row, Reject) else row for row in read]


def few(line: int, cells: str) -> tuple[str, str]:
    return ("cell_count", f"line {line} has {cells}, expected 2 as in the first line")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('1,2\n"x, y","z"\n', [("1", "2"), ("x, y", "z")]),
        ('"two\nlines","four\r\n\nlines"\r\n3,4\r\n', [("two\nlines", "four\r\n\nlines"), ("3", "4")]),
        ('"an ""inner"" quote","""all"""\n', [('an "inner" quote', '"all"')]),
        (',\n"",""\n,""\n"",\r\n', [(None, None), ("", ""), (None, ""), ("", None)]),
        ('5" screen,x "y" z\n1, "2"\n', [('5" screen', 'x "y" z'), ("1", ' "2"')]),
        ("a\u2028b\x85,c\rd\n\0,e", [("a\u2028b\x85", "c\rd"), ("\0", "e")]),
        ("null,NA\n#1,2\n", [("null", "NA"), ("#1", "2")]),
    ],
)
def test_cells_are_the_texts_that_were_written(text: str, expected: list[Any], tmp_path: Path) -> None:
    assert rows(tmp_path, "a,b\n" + text) == [dict(zip("ab", row, strict=True)) for row in expected]
    assert rows(tmp_path, "\ufeff\r\n\na,b\r\n" + text) == [dict(zip("ab", row, strict=True)) for row in expected]


def test_what_polars_writes_is_read_as_it_was(tmp_path: Path) -> None:
    texts = ["", None, "a,b", 'q"', "\n", "\r\n", "x\ry", " ", "ä", "\t", '""', "\n\n", "null"]
    frame = pl.DataFrame({"a": texts, "b": texts[::-1], "c": ["end"] * len(texts)})
    for separator in (",", "\t"):
        text = frame.write_csv(separator=separator, quote_style="necessary")
        assert rows(tmp_path, text, separator.encode()) == frame.to_dicts()


@pytest.mark.parametrize(
    ("text", "cells"), [("x\n", "1 cell"), ("x,y,z\n", "3 cells"), ('"x\ny"\n', "1 cell"), (",,\n", "3 cells")]
)
def test_a_row_with_another_number_of_cells_is_one_rejected_row(text: str, cells: str, tmp_path: Path) -> None:
    read = rows(tmp_path, "a,b\n1,2\n" + text + "3,4\n5\n")
    last = 4 + text.count("\n")
    assert read == [{"a": "1", "b": "2"}, few(3, cells), {"a": "3", "b": "4"}, few(last, "1 cell")]


def test_a_row_that_is_no_utf8_is_one_rejected_row(tmp_path: Path) -> None:
    first, second, third = rows(tmp_path, b"a,b\n1,2\n\xff,x\n3,4\n")
    assert (first, third) == ({"a": "1", "b": "2"}, {"a": "3", "b": "4"})
    assert second[0] == "not_utf8"
    assert "line 3" in second[1]


def test_blank_lines_are_rows_that_are_skipped(tmp_path: Path) -> None:
    assert rows(tmp_path, "a,b\n\n1,2\n\r\n") == [b"", {"a": "1", "b": "2"}, b""]
    assert rows(tmp_path, "a\tb\n\t\n", b"\t") == [{"a": None, "b": None}]


def test_no_column_replaces_another_of_its_name(tmp_path: Path) -> None:
    assert rows(tmp_path, "a,a,,a\n1,2,3,4\n") == [{"a": "1", "a_duplicated_0": "2", "": "3", "a_duplicated_1": "4"}]
    with pytest.raises(OSError, match="two columns have the name text, which is read; rename one"):
        rows(tmp_path, "text,a,text\n1,2,3\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line with the names"),
        (b"\n\n", "no line with the names"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "line 3: a quote opens a cell and none closes"),
        (b'a,b\n1,2\n"3\n" 4,5\n', "line 4: text behind the quote"),
        (b"\xff,b\n1,2\n", "names of the columns are not UTF-8"),
        (b"a,b\r1,2\r", "carriage returns alone"),
    ],
)
def test_a_file_whose_rows_cannot_be_told_apart_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match=message):
        rows(tmp_path, content)


def test_a_build_rejects_faulty_rows_alone_and_keeps_the_numbers_of_the_others(tmp_path: Path) -> None:
    good = CHUNK_ROWS + 20
    lines = [f'question {i},"answer\n{i}"' for i in range(good)]
    lines[7:7] = ["too few", "one,too,many", ""]
    (tmp_path / "a.csv").write_text("\n".join(["question,answer", *lines]) + "\n")
    config = PrepConfig(
        sources=(str(tmp_path / "a.csv"),), model=str(tiny_model_folder(tmp_path)), seq_len=128,
        out=str(tmp_path / "out"), workers=1, max_rejects=0.01,
    )  # fmt: skip
    manifest = build_shards(config)
    counts = manifest.counts
    assert (counts["packed"], manifest.rejects, counts["skipped"]) == (good, {"cell_count": 2}, 1)
    assert "cell_count" in REASONS
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet").sort("row")
    assert rejects["row"].to_list() == [7, 8]
    assert [text.split(",")[0] for text in rejects["message"]] == ["line 16 has 1 cell", "line 17 has 3 cells"]
    packed = pl.read_parquet(tmp_path / "out" / "samples.parquet")["row"].sort().to_list()
    assert packed == [*range(7), *range(10, good + 3)]
    (source,) = manifest.sources
    assert json.dumps(source).count("swift") == 1
