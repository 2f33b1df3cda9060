"""Records in memory, and the pieces of a build, with nothing but public names."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from lmms.cli.demo.draw import draw_pictures
from lmms.configs import PrepConfig, SourceError, read_model_folder
from lmms.configs.contract.manifest import open_dataset
from lmms.configs.errors import ConfigError
from lmms.prep import Record, Reject, build_shards, load_renderer, plan_packs, read_records, render_record
from lmms.prep.rows.chunk import CHUNK_ROWS
from lmms.prep.rows.memory import memory_rows
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.folders import tiny_model_folder


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, Any]]:
    """Thirty conversations about drawn pictures, and one that cannot be used."""
    draw_pictures(tmp_path, "pictures", 30, 0)
    lines = (tmp_path / "pictures.jsonl").read_text().splitlines()
    return [*(in_parts(json.loads(line)) for line in lines), {"messages": []}]


def in_parts(record: dict[str, Any]) -> dict[str, Any]:
    """The record with each content as a list of parts: a column of a frame has one type."""
    for message in record["messages"]:
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    return record


def config(folder: Path, name: str, **changes: Any) -> PrepConfig:
    model = str(tiny_model_folder(folder))
    settings = {"sources": (), "media_root": str(folder), "workers": 0, "max_rejects": 0.1, "seq_len": 256}
    return PrepConfig(model=model, out=str(folder / name), **{**settings, **changes})


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard.*")}


def test_records_in_memory_become_the_packs_of_the_same_records_in_a_file(
    records: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    expected = build_shards(config(tmp_path, "file", sources=(str(tmp_path / "all.jsonl"),)))
    listed = build_shards(config(tmp_path, "list"), records=iter(records))
    framed = build_shards(config(tmp_path, "frame", workers=2), records=pl.DataFrame(records))
    assert shards_of(tmp_path / "list") == shards_of(tmp_path / "frame") == shards_of(tmp_path / "file") != {}
    assert listed.counts == framed.counts == expected.counts
    assert listed.counts["rejected"] == 1
    assert [source["name"] for source in listed.sources] == ["memory"]


def test_a_data_set_of_the_package_datasets_is_read_as_arrow(records: list[dict[str, Any]], tmp_path: Path) -> None:
    """The package is told by its `with_format(...).iter(...)`; this stands for it, with its real tables."""
    table = pl.DataFrame(records).to_arrow()

    class DataSet:
        def with_format(self, kind: str) -> "DataSet":
            assert kind == "arrow"
            return self

        def iter(self, batch_size: int) -> Any:
            return (table.slice(start, batch_size) for start in range(0, len(table), batch_size))

    build_shards(config(tmp_path, "set"), records=DataSet())
    build_shards(config(tmp_path, "list"), records=records)
    assert shards_of(tmp_path / "set") == shards_of(tmp_path / "list")


def test_files_and_memory_may_be_packed_together(records: list[dict[str, Any]], tmp_path: Path) -> None:
    both = build_shards(config(tmp_path, "both", sources=(str(tmp_path / "pictures.jsonl"),)), records=records)
    assert [source["read"] for source in both.sources] == [30, 31]


@pytest.mark.parametrize("wrong", [7, "records.jsonl"])
def test_what_holds_no_records_is_named(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"records is an? \w+, expected an iterable of dicts, a polars frame"):
        build_shards(config(tmp_path, "out"), records=wrong)
    assert not (tmp_path / "out").exists()


def test_a_data_set_of_splits_asks_for_a_split(records: list[dict[str, Any]], tmp_path: Path) -> None:
    """What a DatasetDict is: a dict of data sets."""
    splits = {"train": records[:2], "test": records[:2]}
    with pytest.raises(SourceError, match="a dict of train, test; give one of its values, such as a split"):
        build_shards(config(tmp_path, "out"), records=splits)


def test_an_entry_that_is_no_record_is_named_by_its_number(records: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="record 2 is a str, expected a dict"):
        build_shards(config(tmp_path, "out"), records=[*records[:2], "x"])


def test_without_files_and_records_there_is_nothing_to_build(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sources is empty"):
        build_shards(config(tmp_path, "out"))


def test_pictures_in_memory_are_read_as_those_of_files(tmp_path: Path) -> None:
    picture = Image.effect_noise((64, 48), 50).convert("RGB")
    picture.save(tmp_path / "a.png")
    turned = picture.copy()
    turned.getexif()[0x0112] = 6  # to be turned by 90 degrees

    def built(name: str, image: Any) -> Any:
        parts = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Noise."}]
        build_shards(config(tmp_path, name), records=[{"messages": turns}])
        dataset = open_dataset(tmp_path / name)
        return PackReader([dataset]).read(read_sidecar(dataset).place(0))

    of_path, of_object = built("path", tmp_path / "a.png"), built("object", picture)
    assert of_path.input_ids.tolist() == of_object.input_ids.tolist()
    pixels = [np.asarray(Image.open(BytesIO(pack.media_bytes))) for pack in (of_path, of_object)]
    assert np.array_equal(*pixels)
    assert built("turned", turned).media[0].size == (48, 64)


def test_chunks_are_cut_by_rows_and_by_bytes() -> None:
    rows = [{"messages": [], "images": [{"bytes": bytes(2**20)}]} for _ in range(20)]
    assert [len(chunk) for chunk in memory_rows(rows)] == [8, 8, 4]
    assert [len(chunk) for chunk in memory_rows({"text": "a"} for _ in range(CHUNK_ROWS + 1))] == [CHUNK_ROWS, 1]


def test_the_pieces_of_a_build_work_alone(records: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + "\n")
    found = list(read_records([str(tmp_path / "all.jsonl")]))
    assert [row for _, row, _ in found] == list(range(31))
    (reject,) = [value for _, _, value in found if isinstance(value, Reject)]
    assert reject.reason == "empty_messages"
    renderer = load_renderer(read_model_folder(tiny_model_folder(tmp_path)))
    conversations = [value for _, _, value in found if isinstance(value, Record)]
    rendered = [render_record(renderer, record, [4] * len(record.images)) for record in conversations]
    tokens = pl.Series([len(one.input_ids) for one in rendered], dtype=pl.Int32).to_numpy()
    plan = plan_packs(tokens, tokens * 0, 256, 0, seed=0)
    assert plan.num_packs < len(rendered) == 30
    packed = [int(tokens[plan.pack_of == pack].sum()) for pack in range(plan.num_packs)]
    assert max(packed) <= 256
    assert sum(packed) == tokens.sum()
