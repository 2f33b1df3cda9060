"""Rows joined to one conversation: what it says, which rows it has, and what becomes of a bad row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lmms.configs.contract.manifest import Manifest, open_dataset
from lmms.configs.errors import ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.configs.settings.transforms import read_transforms
from lmms.prep.build import build_shards
from lmms.prep.sample.joining import ALONE
from lmms.train.data.verify import verify
from tests.kit.folders import shard_files, tiny_model_folder
from tests.kit.media.boxes import BOX, boxes_of, build, red_box, samples, write_boxes

JOIN = {"name": "join", "images": 2}


STEPS = ({"name": "variants", "count": 2}, {"name": "join", "images": 3})


def dense(number: int, **more: Any) -> dict[str, Any]:
    objects = [{"bbox_2d": list(BOX), "label": f"red {number}"}]
    return {"image": "red.png", "objects": objects, "summary": f"Sum {number}.", **more}


def chat(number: int, question: str = "What?", answer: str = "") -> dict[str, Any]:
    content = [{"type": "image", "image": "red.png"}, {"type": "text", "text": question}]
    answer = answer or f'It is "{number}".'
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def answers(text: str) -> Any:
    return json.loads(text.rpartition("assistant\n")[2].removesuffix("<|im_end|>\n"))


def table(folder: Path) -> list[tuple[int, int, int, int]]:
    """(row, pack, segment, tokens) of samples.parquet."""
    return list(pl.read_parquet(folder / "samples.parquet").select("row", "pack", "segment", "tokens").iter_rows())


def manifest(folder: Path) -> Manifest:
    assert list(verify(folder)) == []
    return open_dataset(folder).manifest


def test_neighbouring_rows_are_one_conversation_that_is_found_by_each_of_its_rows(tmp_path: Path) -> None:
    out = build(tmp_path, write_boxes(tmp_path, [dense(i) for i in range(5)]), transforms=(JOIN,))
    packed = samples(out, tmp_path / "model")
    assert [len(pictures) for _, pictures in packed] == [2, 2, 1]
    assert "<IMAGE><|vision_end|><|vision_start|><IMAGE><|vision_end|>Locate every object" in packed[0][0]
    labels = {key: [item["label"] for item in objects] for key, objects in answers(packed[1][0]).items()}
    assert labels == {"image_1": ["red 2"], "image_2": ["red 3"]}
    (source,) = manifest(out).sources
    assert (source["read"], source["packed"], source["samples"]) == (5, 5, 3)
    rows = table(out)
    assert [row for row, *_ in rows] == list(range(5))
    assert rows[0][1:3] == rows[1][1:3] != rows[2][1:3] == rows[3][1:3]
    assert [tokens > 0 for *_, tokens in rows] == [True, False, True, False, True]
    assert manifest(out).notes[ALONE] == 1
    assert manifest(out).counts["duplicates"] == 0


def test_boxes_stay_with_their_picture(tmp_path: Path) -> None:
    steps = ({"name": "hflip"}, {"name": "pad", "most": 0.5}, JOIN, {"name": "rotate", "angles": [90], "prob": 1.0})
    out = build(tmp_path, write_boxes(tmp_path, [dense(i) for i in range(6)]), transforms=steps, seq_len=4096)
    sizes = set()
    for text, pictures in samples(out, tmp_path / "model"):
        boxes = boxes_of(text)
        assert len(boxes) == len(pictures) == 2
        for box, picture in zip(boxes, pictures, strict=True):
            sizes.add(picture.size)
            scaled = [v / 1000 * picture.size[i % 2] for i, v in enumerate(box)]
            assert scaled == pytest.approx(red_box(picture), abs=2)
    assert len(sizes) > 2  # what stands before join draws for each row


def test_what_stands_behind_join_is_drawn_once_for_a_group(tmp_path: Path) -> None:
    records = [dense(i, n=i) for i in range(60)]
    steps = (JOIN, {"name": "summary", "ratio": 0.5, "prompts": ["Sum up.", "In short?"]})
    packed = [
        text
        for text, _ in samples(build(tmp_path, write_boxes(tmp_path, records), transforms=steps), tmp_path / "model")
    ]
    kinds = Counter(frozenset(type(answer).__name__ for answer in answers(text).values()) for text in packed)
    assert set(kinds) == {frozenset({"str"}), frozenset({"list"})}
    assert sum(kinds.values()) == 30
    asked = Counter(prompt for text in packed for prompt in ("Sum up.", "In short?") if prompt in text)
    assert len(asked) == 2
    assert sum(asked.values()) == kinds[frozenset({"str"})]


def test_a_bad_row_is_rejected_alone(tmp_path: Path) -> None:
    bad = [dense(1, image="none.png"), dense(2, objects=7), dense(3, summary=None)]
    records = [dense(0), bad[0], bad[1], dense(4), bad[2], dense(5), dense(6)]
    steps = (JOIN, {"name": "summary", "ratio": 1.0})
    out = build(tmp_path, write_boxes(tmp_path, records), transforms=steps, max_rejects=0.9)
    account = manifest(out)
    assert account.rejects == {"missing_file": 1, "bad_box": 1, "missing_column": 1}
    assert pl.read_parquet(out / "rejects.parquet")["row"].to_list() == [1, 2, 4]
    first, *others = [text for text, _ in samples(out, tmp_path / "model")]
    assert answers(first) == {"image_1": "Sum 0.", "image_2": "Sum 4."}
    assert [text.partition("assistant\n")[2] for text in others] == ["Sum 5.<|im_end|>\n", "Sum 6.<|im_end|>\n"]
    counts = account.counts
    assert counts["read"] == 7 == counts["packed"] + counts["rejected"]


def test_only_conversations_of_one_question_and_one_picture_are_joined(tmp_path: Path) -> None:
    several = {"messages": chat(5)["messages"] + chat(6)["messages"]}
    text = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    records = [chat(0), chat(1, "Who?"), several, chat(3), text, chat(4), chat(7, "Who?"), chat(8, "Who?", "[1]")]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    write_boxes(tmp_path)
    step = {"name": "join", "images": 4, "label": "Bild {n}"}
    out = build(tmp_path, tmp_path / "a.jsonl", transforms=(step,))
    packed = [text for text, _ in samples(out, tmp_path / "model")]
    assert answers(packed[0]) == {"Bild 1": 'It is "0".', "Bild 2": 'It is "3".'}
    assert answers(packed[-1]) == {"Bild 1": 'It is "7".', "Bild 2": [1]}
    assert [row for row, *_, tokens in table(out) if tokens] == [0, 1, 2, 4, 5, 6]
    assert manifest(out).notes[ALONE] == 4


def test_rows_that_are_too_long_together_are_packed_each_for_itself(tmp_path: Path) -> None:
    whole = build(tmp_path, write_boxes(tmp_path, [dense(0)]), "whole")
    (length,) = [tokens for *_, tokens in table(whole)]
    out = build(tmp_path, write_boxes(tmp_path, [dense(i) for i in range(4)]), transforms=(JOIN,), seq_len=length + 9)
    assert manifest(out).rejects == {}
    assert [tokens > 0 for *_, tokens in table(out)] == [True] * 4


def test_joined_rows_have_equal_bytes_for_any_workers_beside_repeats_evaluation_and_duplicates(tmp_path: Path) -> None:
    model = str(tiny_model_folder(tmp_path))
    path = str(write_boxes(tmp_path, [dense(i % 1000) for i in range(1300)]))
    source = SourceConfig(path=path, repeat=1.5, transforms=STEPS)
    folders = {}
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        settings: dict[str, Any] = {"eval_share": 0.2, "duplicates": "drop", "workers": workers}
        build_shards(PrepConfig(sources=(source,), model=model, seq_len=2048, out=str(out), **settings))
        for folder in (out, tmp_path / f"out{workers}-eval"):
            counts = manifest(folder).counts
            assert counts["read"] == counts["packed"] + counts["rejected"] + counts["skipped"]
        folders[workers] = shard_files(out)
    assert folders[1] == folders[2]
    training, held_out = (pl.read_parquet(tmp_path / name / "samples.parquet") for name in ("out1", "out1-eval"))
    assert not set(training["row"]) & set(held_out["row"])
    assert set(Counter(training["row"].to_list()).values()) == {2, 4}  # variants, once or twice
    assert set(Counter(held_out["row"].to_list()).values()) == {1}
    packed = samples(tmp_path / "out1", Path(model))
    assert max(len(pictures) for _, pictures in packed) == 3


def test_join_stands_once_in_a_list() -> None:
    with pytest.raises(ConfigError, match="join stands twice"):
        read_transforms([JOIN, JOIN])
