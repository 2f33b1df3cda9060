"""Tools and calls of a table: keys that a row does not use are not there, in every way a table comes."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from lmms.prep.first_records import read_records
from lmms.prep.records.record import Record
from lmms.prep.rows.memory import memory_rows


def rows() -> list[dict[str, Any]]:
    """Two records whose tools and arguments have different keys."""
    made = []
    for number, key in enumerate(("city", "day")):
        call = {"id": f"c{number}", "function": {"name": key, "arguments": {key: "x"}}}
        properties = {key: {"type": "string"}}
        made.append(
            {
                "messages": [
                    {"role": "user", "content": "?", "tool_calls": None},
                    {"role": "assistant", "content": None, "tool_calls": [call]},
                ],
                "tools": [{"type": "function", "function": {"name": key, "parameters": {"properties": properties}}}],
            }
        )
    return made


def check(records: list[Any]) -> None:
    assert all(isinstance(record, Record) for record in records)
    for record, raw in zip(records, rows(), strict=True):
        assert list(record.tools) == raw["tools"]
        assert [dict(call.arguments) for call in record.messages[1].calls] == [
            call["function"]["arguments"] for call in raw["messages"][1]["tool_calls"]
        ]


@pytest.mark.parametrize("ending", ["parquet", "arrow", "jsonl"])
def test_keys_that_only_other_rows_use_are_absent_in_tools_and_calls(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{ending}"
    if ending == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    elif ending == "parquet":
        pl.DataFrame(rows()).write_parquet(file)
    else:
        table = pa.Table.from_pylist(rows())
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    check([record for _, _, record in read_records([str(file)])])


def test_a_frame_in_memory_has_no_such_keys_and_dicts_keep_their_nulls() -> None:
    (frame,) = memory_rows(pl.DataFrame(rows()))
    assert [row["tools"] for row in frame] == [row["tools"] for row in rows()]
    meant = {**rows()[0], "tools": [{"name": "f", "default": None}]}
    ((kept,),) = memory_rows([meant])
    assert kept["tools"] == meant["tools"]


def test_a_null_in_json_is_a_value(tmp_path: Path) -> None:
    row = rows()[0]
    row["messages"][1]["tool_calls"][0]["function"]["arguments"]["unit"] = None
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    ((_, _, record),) = read_records([str(tmp_path / "a.jsonl")])
    assert isinstance(record, Record)
    assert record.messages[1].calls[0].arguments == {"city": "x", "unit": None}
