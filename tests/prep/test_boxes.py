"""Boxes and points: in the text where the model of the build looks for them, or a reject."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from lmms.configs.contract.media.geometry import Vision, resized
from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.settings.sources import DEFAULT_READING, FormName
from lmms.prep.records.forms import find_form
from lmms.prep.records.parts import Text
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Record
from lmms.prep.records.shapes import parse_shape, shape_text
from lmms.prep.records.written import with_shapes_written
from lmms.prep.reject import Reject
from tests.kit.media.boxes import BOX, SIZE, boxes_of, build, samples, write_boxes


def read(record: dict[str, Any], form: FormName) -> Record:
    parsed = read_record(record, replace(DEFAULT_READING, form=form))
    assert isinstance(parsed, Record)
    return parsed


def texts(record: dict[str, Any], form: FormName, coords: Any = "norm1000") -> list[str]:
    """The text of each turn, for pictures of 100 x 50 pixels that become 200 x 200."""
    parsed = read(record, form)
    written = with_shapes_written(parsed, [((100, 50), (200, 200))] * len(parsed.images), coords)
    return [
        "".join(p.text for p in m.content if isinstance(p, Text)) if not isinstance(m.content, str) else m.content
        for m in written.messages
    ]


def swift(answer: str, images: int = 1, **objects: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "<image>" * images + "Find."}, {"role": "assistant", "content": answer}]
    return {"messages": turns, "images": ["a.jpg"] * images, "objects": objects}


def dense(**columns: Any) -> dict[str, Any]:
    objects = [{"bbox_2d": [10, 5, 20, 25], "label": 'a "cat"'}, {"point_2d": [50, 50], "label": "nose"}]
    return {"image": "a.jpg", "objects": objects, **columns}


def test_a_box_is_thousandths_of_the_picture_or_pixels_after_the_resize() -> None:
    box = parse_shape("box", [10, 5, 20.4, 25], 0, "")
    assert shape_text(box, (100, 50), (200, 400), "norm1000") == "[100, 100, 204, 500]"
    assert shape_text(box, (100, 50), (200, 400), "absolute") == "[20, 40, 41, 200]"


def test_a_dense_record_becomes_a_question_and_json() -> None:
    question, answer = texts(dense(width=100, height=50), "objects")
    assert question.startswith("Locate every object")
    assert json.loads(answer) == [
        {"bbox_2d": [100, 100, 200, 500], "label": 'a "cat"'},
        {"point_2d": [500, 1000], "label": "nose"},
    ]
    assert answer == json.dumps(json.loads(answer))


def test_the_form_of_dense_records_is_found() -> None:
    assert find_form([dense(), dense(summary="A cat.")]) == "objects"
    assert find_form([{**dense(), "messages": [{"role": "user", "content": "a"}]}]) == "openai"


def test_a_picture_without_objects_has_an_empty_list() -> None:
    assert texts({"image": "a.jpg", "objects": []}, "objects")[1] == "[]"


def test_tags_take_boxes_and_names_in_order_as_ms_swift_does() -> None:
    record = swift(
        "<ref-object> at <bbox>, <ref-object> at <bbox>", ref=["cat", "dog"], bbox=[[10, 5, 20, 25], [50, 50]]
    )
    assert texts(record, "swift")[1] == "cat at [100, 100, 200, 500], dog at [500, 1000]"
    assert find_form([record]) == "swift"


def test_boxes_of_several_pictures_and_of_shares() -> None:
    record = swift("<bbox><bbox>", 2, bbox=[[0.1, 0.2, 1, 1], [0, 0, 0.5, 0.5]], bbox_type="norm1", image_id=[1, 0])
    assert texts(record, "swift", "absolute")[1] == "[20, 40, 200, 200][0, 0, 100, 100]"
    parsed = read(record, "swift")
    assert isinstance(parsed.messages[1].content, tuple)
    assert [shape.image for shape in parsed.messages[1].content if hasattr(shape, "image")] == [1, 0]


def test_names_alone_are_text() -> None:
    assert read(swift("a <ref-object>", ref=["cat"]), "swift").messages[1].content == "a cat"


def test_numbers_are_those_of_ms_swift() -> None:
    """Its rule: int(round(x / width * 1000)), or of the width after the resize."""
    draw = random.Random(0)
    for _ in range(500):
        size, after = [(draw.randint(1, 4000), draw.randint(1, 4000)) for _ in range(2)]
        (x1, x2), (y1, y2) = (sorted(draw.uniform(0, side) for _ in range(2)) for side in size)
        box = parse_shape("box", [x1, y1, x2, y2], 0, "")
        for coords, full in (("norm1000", (1000, 1000)), ("absolute", after)):
            theirs = [int(round(v / size[i % 2] * full[i % 2])) for i, v in enumerate([x1, y1, x2, y2])]  # noqa: RUF046
            assert shape_text(box, size, after, coords) == str(theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "record", "reason", "place"),
    [
        ("objects", dense(objects=[{"bbox_2d": [20, 5, 10, 25]}]), "bad_box", "objects[0].bbox_2d"),
        ("objects", dense(objects=[{"bbox_2d": [1, 2, 3]}]), "bad_box", "objects[0].bbox_2d"),
        ("objects", dense(objects=[{"bbox_2d": [1, 2, 3, True]}]), "bad_box", "objects[0].bbox_2d"),
        ("objects", dense(objects=[{"box": [1, 2, 3, 4]}]), "bad_box", "objects[0]"),
        ("objects", dense(objects=[7]), "bad_box", "objects[0]"),
        ("objects", dense(objects={}), "bad_box", "objects"),
        ("objects", dense(width=100), "bad_box", "width"),
        ("objects", dense(width=100, height=float("inf")), "bad_box", "width"),
        ("objects", dense(width=100, height=50.5), "bad_box", "width"),
        ("objects", dense(image=["a", "b"]), "count_mismatch", "images"),
        ("objects", {"image": "a"}, "missing_messages", ""),
        ("swift", swift("<bbox>", bbox=[], ref=["a"]), "count_mismatch", "objects"),
        ("swift", swift("a", bbox=[[1, 2, 3, 4]]), "count_mismatch", "objects"),
        ("swift", swift("<bbox>", bbox=[[1, 2, 3, 4]], image_id=[1]), "bad_box", "objects.bbox[0]"),
        ("swift", swift("<bbox>", bbox=[[3, 2, 1, 4]]), "bad_box", "objects.bbox[0]"),
        ("swift", swift("<bbox>", bbox=[[1, 2, 3, 4]], bbox_type="norm"), "bad_box", "objects.bbox_type"),
        ("swift", swift("<bbox>", boxes=[[1, 2, 3, 4]]), "bad_box", "objects"),
    ],
)
def test_what_is_no_box_is_rejected_where_it_stands(
    form: FormName, record: dict[str, Any], reason: str, place: str
) -> None:
    with pytest.raises(Reject) as caught:
        read(record, form)
    assert (caught.value.reason, caught.value.place) == (reason, place)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"objects": [{"bbox_2d": [0, 0, 161, 96]}]}, "leaves its picture of 160 x 96"),
        ({"objects": [{"point_2d": [-1, 0]}]}, "leaves its picture"),
        ({"width": 80, "height": 48}, "states 80 x 48 pixels, the picture has 160 x 96"),
    ],
)
def test_a_box_of_another_picture_is_rejected_in_a_build(columns: dict[str, Any], said: str, tmp_path: Path) -> None:
    good = {"image": "red.png", "objects": [{"bbox_2d": [0, 0, *SIZE], "label": "all"}]}
    source = write_boxes(tmp_path, [good, {**good, **columns}])
    out = build(tmp_path, source, max_rejects=0.5)
    rejects = pl.read_parquet(out / "rejects.parquet").to_dicts()
    assert [(row["row"], row["reason"]) for row in rejects] == [(1, "bad_box")]
    assert said in rejects[0]["message"]
    assert boxes_of(samples(out, tmp_path / "model")[0][0]) == [[0, 0, 1000, 1000]]


def test_a_build_writes_coordinates_as_its_family_or_a_setting_says(tmp_path: Path) -> None:
    source = write_boxes(tmp_path)
    vision = read_model_folder(build(tmp_path, source).parent / "model").vision
    assert isinstance(vision, Vision)
    height, width = resized(SIZE[1], SIZE[0], vision)
    share = [v / SIZE[i % 2] for i, v in enumerate(BOX)]
    assert boxes_of(samples(tmp_path / "out", tmp_path / "model")[0][0]) == [[round(1000 * v) for v in share]]
    build(tmp_path, source, "absolute", coords="absolute")
    expected = [round(v * (width, height)[i % 2]) for i, v in enumerate(share)]
    assert boxes_of(samples(tmp_path / "absolute", tmp_path / "model")[0][0]) == [expected]


@pytest.mark.parametrize(("name", "coords"), [("qwen2.5-vl", "absolute"), ("qwen3-vl", "norm1000")])
def test_real_boxes_are_packed_as_the_family_writes_them(
    name: str, coords: Any, shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    source = shared / "data" / "image" / "raccoon_boxes" / "objects.jsonl.zst"
    vision = read_model_folder(model_folders[name]).vision
    assert vision
    out = build(tmp_path, source, model=str(model_folders[name]), seq_len=4096)
    with pa.CompressedInputStream(pa.OSFile(str(source)), "zstd") as stream:
        records = [json.loads(line) for line in stream.read().splitlines()]
    packed = samples(out, model_folders[name])
    assert len(packed) == len(records) == 106
    for (text, _), record in zip(packed, records, strict=True):
        width, height = record["width"], record["height"]
        after = resized(height, width, vision)[::-1] if coords == "absolute" else (1000, 1000)
        expected = [
            [round(v / (width, height)[i % 2] * after[i % 2]) for i, v in enumerate(item["bbox_2d"])]
            for item in record["objects"]
        ]
        assert boxes_of(text) == expected


def test_boxes_of_a_table_are_read(tmp_path: Path) -> None:
    write_boxes(tmp_path)
    frame = pl.DataFrame([json.loads((tmp_path / "boxes.jsonl").read_text())])
    frame.write_parquet(tmp_path / "boxes.parquet")
    out = build(tmp_path, tmp_path / "boxes.parquet")
    assert boxes_of(samples(out, tmp_path / "model")[0][0]) == [[150, 167, 550, 583]]


def test_geometry_edge_cases_are_rejected_as_the_file_says(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "image"
    expected = json.loads((folder / "edge_cases.expected.json").read_text())["records"]
    with pa.CompressedInputStream(pa.OSFile(str(folder / "edge_cases.jsonl.zst")), "zstd") as stream:
        records = [json.loads(line) for line in stream.read().splitlines()]
    geometry = [record for record in records if expected[record["id"]].get("policy") == "geometry"]
    sound = {**geometry[0], "objects": [{"bbox_2d": [10, 10, 200, 140], "label": "cat"}]}
    source = tmp_path / "geometry.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in [sound, *geometry]))
    out = build(tmp_path, source, media_root=str(folder), form="objects", max_rejects=1.0)
    rejects = pl.read_parquet(out / "rejects.parquet")
    assert len(geometry) == 3
    assert {expected[record["id"]]["outcome"] for record in geometry} == {"rejected"}
    assert rejects["row"].to_list() == [1, 2, 3]
    assert set(rejects["reason"]) == {"bad_box"}
