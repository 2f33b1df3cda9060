"""Records longer than a pack: rejected, cut in pieces, or without their last turns, and all of it counted."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lmms.cli.demo.draw import draw_pictures
from lmms.configs.contract.manifest import Manifest
from lmms.configs.errors import ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.sample.samples import NO_TEXT
from lmms.train.data.verify import verify
from tests.kit.folders import TOOL_TEMPLATE, tiny_model_folder

CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
TOOL = {"role": "tool", "content": "a view"}


def exchanges(number: int, words: int) -> list[dict[str, Any]]:
    turns = []
    for i in range(number):
        turns += [{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"word{i} " * words}]
    return turns


def build(folder: Path, name: str, *records: dict[str, Any], **settings: Any) -> Manifest:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config: dict[str, Any] = {"seq_len": 128, "max_rejects": 1.0, "workers": 0, **settings}
    model = str(tiny_model_folder(folder))
    return build_shards(
        PrepConfig(sources=(str(folder / f"{name}.jsonl"),), model=model, out=str(folder / name), **config)
    )


def learned(folder: Path) -> list[int]:
    return pl.read_parquet(folder / "samples.parquet")["target_tokens"].to_list()


SHORT = {"messages": exchanges(1, 3)}


def test_a_long_conversation_is_rejected_unless_its_turns_may_be_cut(tmp_path: Path) -> None:
    long = {"messages": exchanges(6, 10)}
    for too_long in (None, "reject", "split"):
        manifest = build(tmp_path, f"kept_{too_long}", SHORT, long, too_long=too_long)
        assert manifest.rejects == {"too_long": 1}
    manifest = build(tmp_path, "cut", SHORT, long, too_long="truncate_turns")
    assert (manifest.counts["packed"], manifest.rejects) == (2, {})
    whole = build(tmp_path, "whole", SHORT, {"messages": exchanges(6, 10)}, seq_len=4096)
    assert 0 < manifest.sources[0]["cut_turns"] < 12
    assert manifest.sources[0]["cut_turns"] % 2 == 0
    assert whole.sources[0]["cut_turns"] == 0
    kept = learned(tmp_path / "cut")[1] / learned(tmp_path / "whole")[1]
    assert kept == pytest.approx(1 - manifest.sources[0]["cut_turns"] / 12, abs=0.06)


def test_turns_are_never_cut_between_a_call_and_its_answer(tmp_path: Path) -> None:
    (tmp_path / "tools.jinja").write_text(TOOL_TEMPLATE)
    settings: dict[str, Any] = {
        "seq_len": 256,
        "too_long": "truncate_turns",
        "chat_template": str(tmp_path / "tools.jinja"),
    }
    look = [{"role": "user", "content": "Look!"}, CALL, TOOL]
    answer = {"role": "assistant", "content": "seen " * 120}
    record = {"messages": [*exchanges(2, 3), *look, answer], "tools": [{"name": "look"}]}
    manifest = build(tmp_path, "cut", record, **settings)
    assert manifest.sources[0]["cut_turns"] == 4
    alone = build(tmp_path, "alone", {"messages": [*look, answer], "tools": [{"name": "look"}]}, SHORT, **settings)
    assert alone.rejects == {"too_long": 1}


def test_what_is_left_of_a_conversation_has_a_turn_to_learn_from(tmp_path: Path) -> None:
    turns = exchanges(6, 10)
    for turn in turns[:-1]:
        turn["weight"] = 0
    assert build(tmp_path, "none", SHORT, {"messages": turns}, too_long="truncate_turns").rejects == {"too_long": 1}


def test_a_long_text_becomes_samples_in_a_row_that_add_up(tmp_path: Path) -> None:
    text = {"text": " ".join(map(str, range(300)))}
    whole = build(tmp_path, "whole", text, seq_len=4096)
    pieces = build(tmp_path, "pieces", {"text": "short"}, text)
    counts = pieces.counts
    assert (counts["read"], counts["packed"], counts["rejected"]) == (2, 2, 0)
    table = pl.read_parquet(tmp_path / "pieces" / "samples.parquet").filter(pl.col("row") == 1)
    assert counts["samples"] == len(table) + 1 > 3
    assert table["tokens"].sum() == whole.counts["tokens"]
    assert table["tokens"].max() <= 128
    assert not list(verify(tmp_path / "pieces"))
    assert build(tmp_path, "kept", {"text": "short"}, text, too_long="reject").rejects == {"too_long": 1}


def test_a_record_that_is_too_long_names_the_column_of_its_text(tmp_path: Path) -> None:
    long, turns = "word " * 200, exchanges(6, 10)
    said = [{"from": turn["role"], "value": turn["content"]} for turn in turns]
    cases: list[tuple[dict[str, Any], dict[str, str], str]] = [
        (SHORT, {}, "not rejected"),
        ({"text": long}, {}, "text"),
        ({"body": long}, {"text": "$.body"}, "body"),
        ({"texts": [long, "b"]}, {}, "texts"),
        ({"prompt": long, "completion": "end"}, {}, "prompt"),
        ({"prompt": "a", "completion": long}, {}, "completion"),
        ({"messages": turns}, {}, "messages"),
        ({"data": {"turns": turns}}, {"messages": "$.data.turns"}, "data.turns"),
        ({"conversations": said, "system": "s"}, {}, "conversations"),
        ({"instruction": "a", "output": long}, {}, ""),
    ]
    for number, (record, _, _) in enumerate(cases):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps(record) + "\n")
    sources = tuple(
        SourceConfig(path=str(tmp_path / f"{i}.jsonl"), fields=fields) for i, (_, fields, _) in enumerate(cases)
    )
    build_shards(
        PrepConfig(
            sources=sources, model=str(tiny_model_folder(tmp_path)), seq_len=128, out=str(tmp_path / "out"),
            workers=1, max_rejects=1.0, too_long="reject",
        )
    )  # fmt: skip
    rejects = pl.read_parquet(tmp_path / "out" / "rejects.parquet").sort("source")
    assert set(rejects["reason"]) == {"too_long"}
    assert [place or "" for place in rejects["place"]] == [place for _, _, place in cases[1:]]


def test_an_overlap_repeats_tokens_as_context(tmp_path: Path) -> None:
    text = {"text": " ".join(map(str, range(300)))}
    apart, shared = build(tmp_path, "apart", text), build(tmp_path, "shared", text, text_overlap=8)
    pieces = shared.counts["samples"]
    assert shared.counts["tokens"] == apart.counts["tokens"] + 8 * (pieces - 1)
    assert shared.counts["target_tokens"] == apart.counts["tokens"] - 1
    with pytest.raises(ConfigError, match="not below seq_len"):
        build(tmp_path, "all", text, text_overlap=128)


def test_a_prompt_and_its_completion_are_never_cut(tmp_path: Path) -> None:
    record = {"prompt": "word " * 200, "completion": "end"}
    assert build(tmp_path, "whole", {"prompt": "a", "completion": "b"}, record).rejects == {"too_long": 1}


def test_chats_and_texts_are_mixed_in_a_build(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps(SHORT) + "\n")
    (tmp_path / "text.jsonl").write_text('{"body": "some text"}\n')
    text = SourceConfig(path=str(tmp_path / "text.jsonl"), name="books", form="text", fields={"text": "$.body"})
    model = str(tiny_model_folder(tmp_path))
    out = str(tmp_path / "out")
    sources = (str(tmp_path / "chat.jsonl"), text)
    manifest = build_shards(PrepConfig(sources=sources, model=model, seq_len=128, out=out, workers=0))
    assert [(s["name"], s["form"], s["packed"]) for s in manifest.sources] == [
        (str(tmp_path / "chat.jsonl"), "openai", 1),
        ("books", "text", 1),
    ]
    assert manifest.counts["packs"] == 1


def test_the_longest_beginning_is_kept_also_where_reasoning_of_earlier_turns_is_dropped(
    tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    answer = {"role": "assistant", "content": "A"}
    user = {"role": "user", "content": "Q"}
    thought = {**answer, "reasoning_content": "so " * 100}
    record = {"messages": [user, answer, user, thought, user, answer, user, {**answer, "content": "end " * 300}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    config = PrepConfig(
        sources=(str(tmp_path / "a.jsonl"),),
        model=str(model_folders["qwen3-text"]),
        seq_len=64,
        out=str(tmp_path / "out"),
        reasoning="optional",
        too_long="truncate_turns",
        workers=0,
    )
    assert build_shards(config).sources[0]["cut_turns"] == 2


def test_pictures_without_text_are_left_out_of_a_long_document_and_counted(tmp_path: Path) -> None:
    draw_pictures(tmp_path, "set", 4, 0)
    pictures = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))[:3]
    record = {"texts": ["intro", None, None, None, "the end"], "images": [None, *pictures, None]}
    short = {"texts": ["words"], "images": [None]}
    manifest = build(tmp_path, "cut", record, short, seq_len=12, form="interleaved")
    assert (manifest.counts["packed"], manifest.counts["rejected"]) == (2, 0)
    assert manifest.notes == {NO_TEXT: 1}
