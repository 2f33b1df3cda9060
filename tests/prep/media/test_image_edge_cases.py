"""../shared/data/image/edge_cases: what the pictures alone decide."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from lmms.prep.media.images import image_size
from lmms.prep.media.read import MediaRef, read_image
from lmms.prep.reject import Reject
from tests.kit.media.pictures import MAX_PIXELS, Level

DECIDED_BY_THE_RECORD = {"bad_part", "count_mismatch", "aspect_ratio"}


def references(record: Any) -> list[MediaRef]:
    parts = [p for m in record["messages"] if isinstance(m["content"], list) for p in m["content"]]
    urls = [p["image_url"] for p in parts if p["type"] == "image_url"]
    paths = [p["image"] for p in parts if p.get("image") is not None] + record.get("images", [])
    named = [MediaRef("url", url if isinstance(url, str) else url["url"]) for url in urls]
    return [*named, *(MediaRef("path", path) for path in paths)]


def edge_cases(folder: Path) -> list[tuple[Any, Any]]:
    """(record, what is expected of it) of those that the pictures themselves decide."""
    expected = json.loads((folder / "edge_cases.expected.json").read_text(encoding="utf-8"))["records"]
    with pa.CompressedInputStream(pa.OSFile(str(folder / "edge_cases.jsonl.zst")), "zstd") as stream:
        records = [json.loads(line) for line in stream.read().decode().splitlines()]
    pairs = [(record, expected[record["id"]]) for record in records]
    return [(r, e) for r, e in pairs if r["id"] == "empty-path" or e.get("reason") not in DECIDED_BY_THE_RECORD]


def ends(references: list[MediaRef], root: Path, level: Level) -> list[tuple[int, int]] | str:
    try:
        return [image_size(read_image(reference, (root,)), level, MAX_PIXELS) for reference in references]
    except Reject as reject:
        return reject.reason


def test_every_edge_case_of_a_picture_ends_as_expected(shared: Path) -> None:
    folder = shared / "data" / "image"
    found_by_decoding_alone = []
    for record, expected in edge_cases(folder):
        found = ends(references(record), folder, "decode")
        if "outcome_if_decoder_has_heic" in expected:
            decoded = expected["outcome_if_decoder_has_heic"]
            expected = {"outcome": decoded["outcome"], "images": [decoded]}
        if expected["outcome"] == "accepted":
            assert found == [(image["width"], image["height"]) for image in expected["images"]], record["id"]
        else:
            assert found in (expected["reason"], *expected.get("reason_also_ok", ())), record["id"]
        if ends(references(record), folder, "structure") != found:
            found_by_decoding_alone.append(record["id"])
    assert found_by_decoding_alone == []


def test_a_link_out_of_the_root_is_the_edge_case_that_it_should_be(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "data" / "image" / "edge_cases", tmp_path / "root" / "edge_cases")
    (tmp_path / "root" / "edge_cases").chmod(0o755)
    shutil.copy(shared / "data" / "image" / "edge_cases" / "good.jpg", tmp_path / "good.jpg")
    (tmp_path / "root" / "edge_cases" / "link_out.jpg").symlink_to(tmp_path / "good.jpg")
    (record, expected), *_ = [x for x in edge_cases(shared / "data" / "image") if x[0]["id"] == "symlink-out-of-root"]
    assert ends(references(record), tmp_path / "root", "structure") == expected["reason_after_setup"]
