"""../shared/data/{text,image}/edge_cases: every line as its expected file says, built by the whole of prep.

Where our names differ from the file's, or a line is a matter of policy, the choice stands here and in docs/records.md.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from lmms.configs.errors import BuildError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards

Outcome = tuple[str, str]

TEXT_NAMES = {"no_trainable_tokens": "no_target_tokens"}
IMAGE_NAMES = {"bad_part": {"bad_part", "part_missing_field", "unknown_part_type"}}
TOOLS = (
    "tool_args_string",
    "tool_args_dict",
    "tools_string",
    "tool_without_call",
)
"""Accepted, but for a template without a place for tools."""
ACCEPTED = ("weight_half",)
"""Policy: any weight counts."""
READ_SINCE = {"url-key-in-image-part": {"width": 225, "height": 150}}
"""Size of a picture in a form that the file expects to be rejected: transformers writes it so, and it is read."""
LENGTH = {"very_long_record": "too_long"}
"""Over any sequence length: the length policy of this version is to reject."""


def unpacked(path: Path, to: Path) -> Path:
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        to.write_bytes(stream.read())
    return to


def outcomes(source: Path, model: Path, out: Path, **settings: Any) -> dict[int, Outcome]:
    """row -> ("accepted", "") or ("rejected", reason); a row that is in neither table was skipped."""
    config = PrepConfig(sources=(str(source),), model=str(model), out=str(out), max_rejects=1.0, workers=0, **settings)
    build_shards(config)
    accepted = pl.read_parquet(out / "samples.parquet")["row"]
    rejects = pl.read_parquet(out / "rejects.parquet")
    found = dict.fromkeys(accepted, ("accepted", ""))
    found |= {row: ("rejected", reason) for row, reason in rejects.select("row", "reason").iter_rows()}
    return found


@pytest.mark.parametrize("name", ["qwen2.5-text", "qwen3-text", "qwen2.5-vl", "qwen3-vl"])
def test_text_edge_cases_end_as_expected(
    name: str, shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    text = shared / "data" / "text"
    source = unpacked(text / "edge_cases.jsonl.zst", tmp_path / "edge_cases.jsonl")
    lines = next(v for v in json.loads((text / "edge_cases.expected.json").read_text()).values() if isinstance(v, list))
    # 70k tokens hold the 3,000 turns and the 100,000 letters, not the 1.8 MB record.
    found = outcomes(source, model_folders[name], tmp_path / "out", seq_len=70_000)
    assert len(lines) == 98
    wrong = {}
    for line in lines:
        outcome, reason = line["outcome"], TEXT_NAMES.get(line.get("reason", ""), line.get("reason", ""))
        if line["name"] in LENGTH:
            outcome, reason = "rejected", LENGTH[line["name"]]
        if line["name"] in ACCEPTED:
            outcome = "accepted"
        if name == "qwen2.5-vl" and line["name"] in TOOLS:
            outcome, reason = "rejected", "tools_unsupported"
        if name != "qwen3-text" and line["name"] in ("reasoning_content", "think_as_reasoning"):
            outcome, reason = "rejected", "reasoning_dropped"
        if name == "qwen3-vl" and line["name"] in ("system_not_first", "two_systems"):
            # Policy: its template leaves out every system turn but the first.
            outcome, reason = "rejected", "template_changes_record"
        expected = None if outcome == "skipped" else (outcome, "" if outcome == "accepted" else reason)
        if found.get(line["line"] - 1) != expected:
            wrong[line["name"]] = (found.get(line["line"] - 1), expected)
    assert not wrong


def expected_image_outcomes(shared: Path) -> dict[str, dict[str, Any]]:
    records = dict(json.loads((shared / "data/image/edge_cases.expected.json").read_text())["records"])
    heic = records["heic"]["outcome_if_decoder_has_heic"]  # the tests run with the extra
    read = {"heic": heic} | {name: {"outcome": "accepted", **size} for name, size in READ_SINCE.items()}
    return records | {name: {**outcome, "images": [outcome]} for name, outcome in read.items()}


def image_copy(shared: Path, to: Path) -> Path:
    """A copy of the image edge cases with the link that leaves the root, as the expected file asks for."""
    shutil.copytree(shared / "data/image/edge_cases", to / "edge_cases")
    (to / "edge_cases").chmod(0o755)
    outside = to.parent / "outside.jpg"
    shutil.copyfile(shared / "data/image/edge_cases/good.jpg", outside)
    (to / "edge_cases/link_out.jpg").symlink_to(outside)
    return unpacked(shared / "data/image/edge_cases.jsonl.zst", to / "edge_cases.jsonl")


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_image_edge_cases_end_as_expected(
    name: str, shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    source = image_copy(shared, tmp_path / "data")
    ids = [json.loads(line)["id"] for line in source.read_text().split("\n") if line]
    settings: dict[str, Any] = {"seq_len": 16384, "verify_media": "decode", "max_pixels": 1_000_000}
    found = outcomes(source, model_folders[name], tmp_path / "out", **settings)
    wrong = {}
    for row, (record_id, expected) in enumerate(zip(ids, expected_image_outcomes(shared).values(), strict=True)):
        outcome, reason = found[row]
        reasons = IMAGE_NAMES.get(expected.get("reason", ""), {expected.get("reason", "")})
        reasons |= set(expected.get("reason_also_ok", []))
        if record_id == "symlink-out-of-root":
            reasons = {"path_outside_root"}
        if expected.get("policy") == "geometry":
            reasons = {"missing_messages"}  # box records hold no conversation
        if record_id == "system-image" and name == "qwen3-vl":
            # Its template has no place for an image in a system turn.
            expected, reasons = {"outcome": "rejected"}, {"template_changes_record"}
        if outcome != expected["outcome"] or (outcome == "rejected" and reason not in reasons):
            wrong[record_id] = (outcome, reason, expected)
    assert not wrong


def test_sizes_of_the_image_edge_cases_are_those_after_rotation(
    shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    from lmms.configs.contract.manifest import open_dataset
    from lmms.train.data.shards import PackReader, read_sidecar

    source = image_copy(shared, tmp_path / "data")
    outcomes(
        source, model_folders["qwen2.5-vl"], tmp_path / "out", seq_len=16384, verify_media="decode", max_pixels=10**6
    )
    dataset = open_dataset(tmp_path / "out")
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    found: dict[int, list[tuple[int, int]]] = {}
    for i in range(dataset.manifest.counts["packs"]):
        pack = reader.read(sidecar.place(i))
        for media in pack.media:
            row = int(pack.samples[pack.segment_of(media.start), 1])
            found.setdefault(row, []).append(media.size)
    for row, expected in enumerate(expected_image_outcomes(shared).values()):
        if row in found:
            assert found[row] == [(image["width"], image["height"]) for image in expected["images"]]
    assert len(found) == 36


def test_a_build_with_too_many_rejects_stops_with_the_reasons_and_keeps_the_ledger(
    shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    source = unpacked(shared / "data/text/edge_cases.jsonl.zst", tmp_path / "edge_cases.jsonl")
    config = PrepConfig(
        sources=(str(source),),
        model=str(model_folders["qwen3-text"]),
        out=str(tmp_path / "out"),
        seq_len=4096,
        workers=0,
    )
    with pytest.raises(BuildError) as caught:
        build_shards(config)
    message = str(caught.value)
    assert "invalid_json" in message
    assert "edge_cases.jsonl, row" in message
    kept = pl.read_parquet(tmp_path / "out.rejects.parquet")
    assert kept.filter(pl.col("reason") == "invalid_json").height == 9
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.lmms-part").exists()
