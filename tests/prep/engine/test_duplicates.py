"""Equal records of a build: counted by source, and dropped where the settings say so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from lmms.configs.contract.manifest import Manifest
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.engine.duplicates import repeated
from lmms.train.data.verify import verify
from tests.kit.folders import tiny_model_folder


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=30))
def test_a_record_is_repeated_if_an_earlier_record_has_its_hash(hashes: list[tuple[int, int]]) -> None:
    high, low = (np.array([pair[i] for pair in hashes], np.uint64) for i in (0, 1))
    assert repeated(high, low).tolist() == [pair in hashes[:i] for i, pair in enumerate(hashes)]


def chat(answer: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}], **keys}


def build(folder: Path, out: str, *sources: SourceConfig, **settings: Any) -> Manifest:
    model = str(tiny_model_folder(folder))
    return build_shards(PrepConfig(sources=sources, model=model, seq_len=64, out=str(folder / out), **settings))


def write(folder: Path) -> list[SourceConfig]:
    text = " ".join(map(str, range(80)))
    files: dict[str, list[dict[str, Any]]] = {
        "a": [chat("x", id="1"), chat("y"), chat("x", id="2"), chat("x", weight=2)],
        "b": [chat("y"), chat("z")],
        "c": [{"text": text}, {"text": text}, {"text": text + " end"}],
    }
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        SourceConfig(path=str(folder / f"{name}.jsonl"), name=name, repeat=2.0 if name == "b" else None)
        for name in files
    ]


def test_equal_records_are_counted_by_source_and_kept(tmp_path: Path) -> None:
    manifest = build(tmp_path, "kept", *write(tmp_path), workers=0)
    assert [source["duplicates"] for source in manifest.sources] == [1, 1, 1]
    assert (manifest.counts["duplicates"], manifest.counts["packed"]) == (3, 9)


def test_equal_records_are_dropped_with_all_their_samples(tmp_path: Path) -> None:
    kept = build(tmp_path, "kept", *write(tmp_path), workers=0)
    manifest = build(tmp_path, "dropped", *write(tmp_path), workers=2, duplicates="drop")
    assert (manifest.counts["packed"], manifest.counts["skipped"], manifest.counts["rejected"]) == (6, 3, 0)
    assert manifest.notes["skipped: duplicates"] == 3
    rows = pl.read_parquet(tmp_path / "dropped" / "samples.parquet").select("source", "row").rows()
    assert sorted(set(rows)) == [(0, 0), (0, 1), (0, 3), (1, 1), (2, 0), (2, 2)]
    assert rows.count((1, 1)) == 2  # a repeated record is no duplicate of itself
    assert rows.count((2, 0)) > 1
    assert manifest.counts["samples"] < kept.counts["samples"]
    assert not list(verify(tmp_path / "dropped"))
