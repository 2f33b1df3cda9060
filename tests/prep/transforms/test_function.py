"""A function of the user's: imported, hashed, and its faults placed."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.transforms.function import load_function
from tests.kit.folders import tiny_model_folder
from tests.kit.media.boxes import build, samples, write_boxes

CODE = """
from dataclasses import replace

from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.transforms.turns import with_answer


def shout(record, draws, mark="!"):
    return with_answer(record, record.columns["summary"].upper() + mark)


def twice(record, draws):
    return [record, with_answer(record, "Again.")]


def broken(record, draws):
    return record.no_such_field


def refuses(record, draws):
    raise Reject("bad_box", "too many", "objects")


def refuses_oddly(record, draws):
    raise Reject("no_such_reason", "odd")


def none(record, draws):
    return []


def wrong(record, draws):
    return {"messages": []}


def wrong_turn(record, draws):
    return replace(record, messages=(replace(record.messages[0], content=None), *record.messages[1:]))


ANSWER = 42
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def built(folder: Path, function: str, **more: Any) -> Path:
    return build(folder, write_boxes(folder), transforms=({"function": function, **more},))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_changes_records_with_its_options_and_columns(workers: int, module: str, tmp_path: Path) -> None:
    entry = {"function": f"{module}:shout", "columns": ["summary"], "options": {"mark": "?"}}
    out = build(tmp_path, write_boxes(tmp_path), transforms=(entry,), workers=workers)
    assert "ONE RED THING.?" in samples(out, tmp_path / "model")[0][0]
    manifest = open_dataset(out).manifest
    digest = hashlib.sha256(CODE.encode()).hexdigest()
    assert manifest.settings["functions"] == {f"{module}:shout": digest}
    assert manifest.settings["transforms"] == [entry]


def test_a_function_may_return_several_records(module: str, tmp_path: Path) -> None:
    packed = samples(built(tmp_path, f"{module}:twice"), tmp_path / "model")
    assert sorted("Again." in text for text, _ in packed) == [False, True]


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("broken", "transform_error", "AttributeError: 'Record' object has no attribute 'no_such_field' (mine_"),
        ("refuses", "bad_box", "too many"),
        ("refuses_oddly", "transform_error", "odd"),
        ("none", "transform_dropped", "returned no record"),
        ("wrong", "transform_error", "returned dict, expected a Record"),
        ("wrong_turn", "transform_error", "content is no text and no tuple of parts"),
    ],
)
def test_a_fault_of_a_function_is_a_reject_of_the_record(
    name: str, reason: str, said: str, module: str, tmp_path: Path
) -> None:
    source = write_boxes(tmp_path)
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n')
    sources = (SourceConfig(path=str(source), transforms=({"function": f"{module}:{name}"},)), "chat.jsonl")
    model, out = str(tiny_model_folder(tmp_path)), tmp_path / "out"
    build_shards(PrepConfig(sources=sources, model=model, out=str(out), seq_len=512, max_rejects=0.5, workers=0))
    (reject,) = pl.read_parquet(out / "rejects.parquet").to_dicts()
    assert (reject["source"], reject["row"], reject["reason"]) == (str(source), 0, reason)
    assert said in reject["message"]
    if name == "broken":
        assert "line 18)" in reject["message"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_such_module_here:f", "cannot be imported: ModuleNotFoundError"),
        ("{module}:no_such", "has no 'no_such'"),
        ("{module}:ANSWER", "is of type int, expected a function"),
        ("{module}", "expected module:function"),
        ("builtins:print", "no file that can be hashed"),
    ],
)
def test_a_function_that_is_not_there_stops_the_build(function: str, said: str, module: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        built(tmp_path, function.format(module=module))
    assert not (tmp_path / "out").exists()


def test_a_function_is_loaded_once(module: str) -> None:
    assert load_function(f"{module}:twice") is load_function(f"{module}:twice")
