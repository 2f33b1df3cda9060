"""A fault of lmms in one record: the error says which record, and a record nested too deep is a rejection."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.engine import store
from tests.kit.folders import TOOL_TEMPLATE, tiny_model_folder


def build(folder: Path, *records: dict[str, Any]) -> Any:
    (folder / "tools.jinja").write_text(TOOL_TEMPLATE)
    (folder / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    model = str(tiny_model_folder(folder))
    out = str(folder / "out")
    sources = (str(folder / "a.jsonl"),)
    config = PrepConfig(sources=sources, model=model, seq_len=128, out=out, workers=1, max_rejects=1.0)
    return build_shards(replace(config, chat_template=str(folder / "tools.jinja")))


CHAT = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


def test_an_error_that_nobody_foresaw_names_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(value: Any, row: int, *others: Any) -> Any:
        raise ZeroDivisionError if row == 1 else store.Reject("not_object", "")

    monkeypatch.setattr(store, "make_samples", broken)
    with pytest.raises(ZeroDivisionError) as caught:
        build(tmp_path, CHAT, CHAT)
    assert caught.value.__notes__ == [f"while row 1 of {tmp_path / 'a.jsonl'} was read"]


def test_a_record_that_is_nested_too_deep_is_a_rejection(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(950):
        deep = [deep]
    call = {"function": {"name": "f", "arguments": {"x": deep}}}
    turns = [CHAT["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    manifest = build(tmp_path, CHAT, {"messages": turns, "tools": [{"name": "f"}]})
    assert manifest.rejects == {"nested_too_deep": 1}
