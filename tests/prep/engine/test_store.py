"""Faults of one record: an error of lmms says which record, and a record nested too deep for Python is a rejection."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.engine import store
from tests.kit.folders import TOOL_TEMPLATE, tiny_model_folder

CHAT = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}


def config(folder: Path, *sources: str) -> PrepConfig:
    (folder / "tools.jinja").write_text(TOOL_TEMPLATE)
    model, out = str(tiny_model_folder(folder)), str(folder / "out")
    template = str(folder / "tools.jinja")
    return PrepConfig(
        sources=sources, model=model, seq_len=128, out=out, workers=0, max_rejects=1.0, chat_template=template
    )


def test_an_error_that_nobody_foresaw_names_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(value: Any, row: int, *others: Any) -> Any:
        raise ZeroDivisionError if row == 1 else store.Reject("not_object", "")

    monkeypatch.setattr(store, "draft_samples", broken)
    (tmp_path / "a.jsonl").write_text((json.dumps(CHAT) + "\n") * 2)
    with pytest.raises(ZeroDivisionError) as caught:
        build_shards(config(tmp_path, str(tmp_path / "a.jsonl")))
    assert caught.value.__notes__ == [f"while row 1 of {tmp_path / 'a.jsonl'} was read"]


def test_a_record_of_memory_that_is_nested_too_deep_is_a_rejection(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    manifest = build_shards(config(tmp_path), records=[CHAT, CHAT | {"tools": [{"name": "f", "parameters": deep}]}])
    assert manifest.rejects == {"nested_too_deep": 1}
