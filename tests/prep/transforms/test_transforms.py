"""Transforms: settings that are checked, draws that repeat, prompts, summaries, and boxes that move with the pixels."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import BuildError, ConfigError
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import DEFAULT_READING, SourceConfig
from lmms.configs.settings.transforms import TRANSFORM_NAMES, Function, Join, Rotate, read_transforms
from lmms.prep.build import build_shards
from lmms.prep.media.read import MediaRef
from lmms.prep.records.parts import Image as Picture
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.transforms import TRANSFORMS, transformed
from lmms.prep.transforms.transform import Draws
from tests.kit.folders import tiny_model_folder
from tests.kit.media.boxes import BOX, SIZE, boxes_of, build, red_box, samples, write_boxes

CHAT: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A long answer.", "reasoning_content": "Hm."},
    ],
    "summary": "Short.",
}


def measured(picture: Picture) -> Picture:
    return replace(picture, ref=MediaRef("bytes", b"x"), size=(100, 50))


def changed(*entries: dict[str, Any], record: dict[str, Any] = CHAT, row: int = 0, seed: int = 0) -> list[Record]:
    transforms = read_transforms(entries)
    parsed = read_record(record, replace(DEFAULT_READING, transforms=transforms))
    assert isinstance(parsed, Record)
    return transformed(parsed, transforms, (seed, "source", row), measured)


def said(record: Record) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in record.messages]


def test_every_transform_of_the_settings_is_in_the_table() -> None:
    assert {*TRANSFORM_NAMES.values(), Function} == {*TRANSFORMS, Join}  # Join takes several records


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "hflp"}, "transforms[0]: no transform 'hflp'; did you mean 'hflip'?"),
        ({"name": "rotate", "max_degs": 3}, "transforms[0] (rotate): unknown key 'max_degs'; did you mean 'max_deg'?"),
        ({"name": "hflip", "prob": 1.5}, "transforms[0] (hflip): prob is 1.5"),
        ({"name": "prompts"}, "transforms[0] (prompts): required but not set: choices"),
        ({"prob": 0.5}, "transforms[0] has the keys prob; expected `name` or `function`"),
        ({"name": "rotate"}, "expected one of max_deg and angles"),
        ({"name": "scale", "lo": 2, "hi": 1}, "lo 2.0 is above hi 1.0"),
        ({"name": "join", "images": 2, "label": "picture"}, "join: label is 'picture', expected a text with {n}"),
    ],
)
def test_a_wrong_setting_is_an_error_before_anything_is_read(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SourceConfig(path="a", transforms=(entry,))
    with pytest.raises(ConfigError, match=re.escape(message)):
        PrepConfig(sources=("a",), model="m", seq_len=9, out="o", transforms=(entry,))


def test_settings_become_typed_values() -> None:
    assert read_transforms([{"name": "rotate", "angles": [90, 180], "fill": [0, 0, 0]}]) == (
        Rotate(angles=(90.0, 180.0), fill=(0, 0, 0)),
    )


def test_draws_repeat_and_differ_by_seed_source_row_and_name() -> None:
    keys: list[tuple[str | int, ...]] = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    drawn = [Draws(key).uniform("x") for key in keys]
    assert len(set(drawn)) == 4
    assert drawn == [Draws(key).uniform("x") for key in keys]
    # Pinned: a build of tomorrow draws what today's did.
    assert drawn[0] == 0.10219358666121879
    numbers = [Draws((0, "a", row)).uniform("x", 2, 4) for row in range(2000)]
    assert 2 <= min(numbers) < 2.01
    assert 3.99 < max(numbers) < 4
    choices = Counter(Draws((0, "a", row)).choice("x", 3) for row in range(3000))
    assert set(choices) == {0, 1, 2}
    assert min(choices.values()) > 900


def test_prompts_replace_the_question_and_keep_its_pictures() -> None:
    choices = ["Describe.", "List."]
    drawn = Counter()
    for row in range(60):
        (record,) = changed({"name": "prompts", "choices": choices}, row=row)
        assert len(record.images) == 1
        drawn[said(record)[0][1]] += 1
    assert set(drawn) == set(choices)


def test_a_system_prompt_is_added_or_replaced() -> None:
    entry = {"name": "prompts", "choices": ["Be brief."], "turn": "system"}
    (record,) = changed(entry)
    assert said(record)[0] == ("system", "Be brief.")
    with_system = {**CHAT, "messages": [{"role": "system", "content": "Old."}, *CHAT["messages"]]}
    (record,) = changed(entry, record=with_system)
    assert [role for role, _ in said(record)] == ["system", "user", "assistant"]
    assert said(record)[0] == ("system", "Be brief.")


def test_a_share_of_the_records_answers_with_the_summary() -> None:
    entry = {"name": "summary", "ratio": 0.25, "prompts": ["Sum up."]}
    records = [changed(entry, row=row)[0] for row in range(400)]
    short = [record for record in records if record.messages[-1].text == "Short."]
    assert 60 < len(short) < 140
    assert {record.messages[0].text for record in short} == {"Sum up."}
    assert {record.messages[-1].reasoning for record in short} == {None}
    assert {record.messages[0].text for record in records if record not in short} == {"What?"}
    assert records[0].unused == ()


@pytest.mark.parametrize("summary", [None, "", 7])
def test_a_record_without_a_summary_is_rejected_unless_none_is_wanted(summary: object) -> None:
    record = {**CHAT, "summary": summary}
    with pytest.raises(Reject) as caught:
        changed({"name": "summary", "ratio": 0.01}, record=record)
    assert (caught.value.reason, caught.value.place) == ("missing_column", "summary")
    assert said(changed({"name": "summary", "ratio": 0}, record=record)[0])[1] == ("assistant", "A long answer.")


def test_variants_draw_for_themselves() -> None:
    records = changed({"name": "variants", "count": 8}, {"name": "rotate", "max_deg": 30, "prob": 1.0})
    angles = [record.images[0].edits[0] for record in records]
    assert len(set(angles)) == len(records) == 8


def test_the_same_transform_twice_draws_twice() -> None:
    turn = {"name": "rotate", "max_deg": 30, "prob": 1.0}
    first, second = changed(turn, turn)[0].images[0].edits
    assert first != second


def test_a_share_of_the_pictures_is_changed() -> None:
    flipped = [bool(changed({"name": "hflip", "prob": 0.3}, row=row)[0].images[0].edits) for row in range(400)]
    assert 80 < sum(flipped) < 160
    assert any(changed({"name": "hflip", "prob": 1.0})[0].images[0].edits)


PIXELS: list[dict[str, Any]] = [
    {"name": "hflip", "prob": 1.0},
    {"name": "vflip", "prob": 1.0},
    {"name": "rotate", "max_deg": 40, "prob": 1.0},
    {"name": "rotate", "angles": [90, 270], "prob": 1.0},
    {"name": "scale", "lo": 1.2, "hi": 1.9, "prob": 1.0},
    {"name": "color_jitter", "brightness": [0.85, 1.15], "contrast": [0.85, 1.15], "prob": 1.0},
    {"name": "pad", "most": 0.5, "prob": 1.0},
    {"name": "pad_to_multiple", "multiple": 100},
]


@pytest.mark.parametrize("entries", [*([entry] for entry in PIXELS), PIXELS], ids=str)
def test_boxes_of_a_build_are_where_the_pixels_are(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    assert {entry["name"] for entry in PIXELS} == set(TRANSFORM_NAMES) - {"variants", "prompts", "summary", "join"}
    source = write_boxes(tmp_path)
    out = build(tmp_path, source, transforms=({"name": "variants", "count": 3}, *entries), seq_len=8192)
    packed = samples(out, tmp_path / "model")
    assert len(packed) == 3
    for text, (picture,) in packed:
        (box,) = boxes_of(text)
        drawn = red_box(picture)
        scaled = [v / 1000 * picture.size[i % 2] for i, v in enumerate(box)]
        assert scaled == pytest.approx(drawn, abs=2)
    before = red_box(Image.open(tmp_path / "red.png"))
    assert before == BOX
    assert entries[0]["name"] == "color_jitter" or packed[0][1][0].size != SIZE or drawn != BOX


def test_copies_of_a_record_are_samples_of_one_record(tmp_path: Path) -> None:
    out = build(tmp_path, write_boxes(tmp_path), transforms=({"name": "variants", "count": 3},))
    (source,) = open_dataset(out).manifest.sources
    assert (source["read"], source["packed"], source["samples"]) == (1, 1, 3)


def test_a_build_with_transforms_is_the_same_for_any_number_of_workers_and_another_by_another_seed(
    tmp_path: Path,
) -> None:
    tiny_model_folder(tmp_path)
    record = {"image": "red.png", "objects": [{"bbox_2d": list(BOX), "label": "red"}]}
    source = write_boxes(tmp_path, [record] * 40)
    transforms = ({"name": "variants", "count": 2}, {"name": "rotate", "max_deg": 20})
    settings = {"transforms": transforms, "edited_jpeg_quality": 80}
    shards = [
        build(tmp_path, source, "one", **settings),
        build(tmp_path, source, "two", **settings, workers=2),
        build(tmp_path, source, "other", **settings, seed=1),
    ]
    one, two, other = (sorted(file.read_bytes() for file in folder.glob("*.mds")) for folder in shards)
    assert one == two != other
    kinds = {picture.format for _, pictures in samples(shards[0], tmp_path / "model") for picture in pictures}
    assert kinds == {"PNG", "JPEG"}


def test_transforms_of_plain_texts_are_refused_before_the_build_unless_the_source_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Call me Ishmael."}\n' * 2 + '{"text": ""}\n')
    model = str(tiny_model_folder(tmp_path))
    texts, dense = SourceConfig(path=str(tmp_path / "a.jsonl")), str(write_boxes(tmp_path))
    settings: dict[str, Any] = {"model": model, "seq_len": 2048, "out": str(tmp_path / "out"), "workers": 0}
    settings |= {"transforms": ({"name": "hflip"}, {"name": "variants", "count": 2}), "max_rejects": 0.5}
    with pytest.raises(ConfigError, match=r"a.jsonl holds plain texts \(form text\).* \(hflip, variants\) change conv"):
        build_shards(PrepConfig(sources=(texts, dense), **settings))
    without = replace(texts, transforms=())
    assert build_shards(PrepConfig(sources=(without, dense), **settings)).counts["packed"] == 3
    (tmp_path / "b.jsonl").write_text('{"prompt": "2 + 2 =", "completion": "4"}\n')
    with pytest.raises(BuildError, match="text without turns"):
        build(tmp_path, tmp_path / "b.jsonl", out="two", transforms=({"name": "hflip"},))


def test_records_for_evaluation_have_the_prompts_and_not_the_augmentation(tmp_path: Path) -> None:
    records = [
        {"image": "red.png", "objects": [{"bbox_2d": list(BOX), "label": f"red {i}"}], "n": i} for i in range(40)
    ]
    steps = (
        *({"name": "variants", "count": 3}, {"name": "hflip", "prob": 1.0}, {"name": "pad", "most": 0.5, "prob": 1.0}),
        *({"name": "pad_to_multiple", "multiple": 64}, {"name": "prompts", "choices": ["Find all."]}),
    )
    source = SourceConfig(path=str(write_boxes(tmp_path, records)), repeat=2, transforms=steps, eval_share=0.3)
    model = tiny_model_folder(tmp_path)
    settings: dict[str, Any] = {"model": str(model), "out": str(tmp_path / "out"), "seq_len": 4096, "workers": 0}
    build_shards(PrepConfig(sources=(source,), **settings))
    held_out, trained = samples(tmp_path / "out-eval", model), samples(tmp_path / "out", model)
    assert len(held_out) * 6 + len(trained) == 240
    assert 4 < len(held_out) < 22
    for text, (picture,) in held_out:
        assert picture.size == (192, 128)  # the size of red.png, up to the next multiple
        assert red_box(picture) == BOX
        assert "Find all." in text
    assert all(red_box(picture) != BOX for _, (picture,) in trained)


def test_a_table_reads_the_column_of_a_transform(tmp_path: Path) -> None:
    write_boxes(tmp_path)
    pl.DataFrame([json.loads((tmp_path / "boxes.jsonl").read_text())]).write_parquet(tmp_path / "boxes.parquet")
    out = build(tmp_path, tmp_path / "boxes.parquet", transforms=({"name": "summary", "ratio": 1.0},))
    assert "One red thing." in samples(out, tmp_path / "model")[0][0]
