"""A build of small records that name their pictures in every way."""

import base64
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import SourceError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.media.pictures import encoded


def record(part: dict[str, Any], **columns: Any) -> dict[str, Any]:
    question = {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}
    return {"messages": [question, {"role": "assistant", "content": "Noise."}], **columns}


def build(folder: Path, records: list[dict[str, Any]], model: Path, **settings: Any) -> dict[int, Any]:
    """row -> grids of its pictures, or (reason, message) of its rejection."""
    file = folder / "records" / "a.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(f"{json.dumps(value)}\n" for value in records))
    out = folder / "out"
    build_shards(
        PrepConfig(
            sources=(str(file),), model=str(model), out=str(out), seq_len=2048, workers=0, max_rejects=1, **settings
        )
    )
    rows: dict[int, Any] = {
        row: (reason, message)
        for row, reason, message in pl.read_parquet(out / "rejects.parquet")
        .select("row", "reason", "message")
        .iter_rows()
    }
    dataset = open_dataset(out)
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    for i in range(dataset.manifest.counts["packs"]):
        pack = reader.read(sidecar.place(i))
        rows |= {row: [] for row in pack.samples[:, 1].tolist()}
        for media in pack.media:
            rows[int(pack.samples[pack.segment_of(media.start), 1])].append(media.grid_thw)
    return rows


def test_every_way_to_name_a_picture_gives_the_same_sample(model_folders: dict[str, Path], tmp_path: Path) -> None:
    images, data = tmp_path / "images", encoded("JPEG")
    (images / "blobs").mkdir(parents=True)
    (images / "blobs" / "0a").write_bytes(data)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "link.jpg").symlink_to("../images/blobs/0a")
    text = base64.b64encode(data).decode()
    parts: list[dict[str, Any]] = [
        *({"type": "image", key: "blobs/0a"} for key in ("image", "url", "path")),
        *({"type": "image", "image": value} for value in (text, {"bytes": text}, f"data:image/jpeg;base64,{text}")),
        *({"type": "image", "image": value} for value in ("link.jpg", "../images/blobs/0a", f"{images}/blobs/0a")),
        {"type": "image", "base64": text},
    ]
    records = [*map(record, parts), record({"type": "image"}, image="blobs/0a", videos=[None], tools={})]
    roots = (str(tmp_path / "records"), str(images))
    rows = build(tmp_path, records, model_folders["qwen2.5-vl"], media_root=roots)
    assert rows == {row: [(1, 4, 6)] for row in range(len(records))}


def test_a_part_decides_the_size_of_its_picture_within_the_limits_of_the_build(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    part = {"type": "image", "base64": base64.b64encode(encoded("JPEG")).decode()}
    asks = [
        {},
        {"min_pixels": 28 * 28 * 24},
        {"resized_height": 28 * 3, "resized_width": 28 * 4},
        {"resized_height": 28 * 30, "resized_width": 28 * 40},
        {"resized_height": 28, "resized_width": 28 * 300},
    ]
    rows = build(
        tmp_path, [record({**part, **ask}) for ask in asks], model_folders["qwen2.5-vl"], max_pixels=28 * 28 * 40
    )
    assert [rows[row] for row in range(4)] == [[(1, 4, 6)], [(1, 8, 14)], [(1, 6, 8)], [(1, 10, 14)]]
    assert rows[4][0] == "aspect_ratio"


@pytest.mark.parametrize(("allowed", "words"), [(False, "or set allow_network"), (True, "no public address")])
def test_the_network_is_used_when_it_is_allowed_and_never_to_this_machine(
    allowed: bool, words: str, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    text, web = record({"type": "text", "text": "a"}), record({"type": "image", "url": "http://127.0.0.1:9/a.jpg"})
    rows = build(tmp_path, [text, web], model_folders["qwen2.5-vl"], allow_network=allowed)
    assert rows[0] == []
    assert rows[1][0] == "remote_url"
    assert words in rows[1][1]


def test_a_media_root_that_is_missing_stops_before_a_record_is_read(
    model_folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"media_root .*none does not exist"):
        build(
            tmp_path,
            [record({"type": "image", "image": "a"})],
            model_folders["qwen2.5-vl"],
            media_root=str(tmp_path / "none"),
        )
