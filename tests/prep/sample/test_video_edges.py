"""Damaged, odd and hostile videos of ../shared: each is taken as expected, or rejected for a right reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.contract.pack import Pack
from lmms.prep.reject import REASONS, Reject
from lmms.prep.video.process import stop
from tests.kit.media.av import made_of, outcomes, records_of


@pytest.fixture(scope="module", autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    yield
    stop()


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_every_edge_case_of_videos_is_taken_or_rejected_as_expected(
    name: str, shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    av = shared / "data" / "av"
    expected = json.loads((av / "edge_cases.expected.json").read_text())["records"]
    records = [record for record in records_of(av / "edge_cases.jsonl.zst") if record["id"].startswith("v-")]
    assert len(records) >= 30
    _, made = made_of(records, av, model_folders[name], tmp_path)
    wrong = {}
    for record, sample in zip(records, made, strict=True):
        case = expected[record["id"]]
        may_be_taken, reasons = outcomes(case)
        if isinstance(sample, Reject):
            assert sample.reason in REASONS
            if sample.reason not in reasons:
                wrong[record["id"]] = (sample.reason, sample.message, reasons)
        elif not may_be_taken or not is_whole(sample, case.get("media", {})):
            wrong[record["id"]] = ("taken", sample.media, case)
    assert wrong == {}


def is_whole(sample: Pack, media: dict[str, Any]) -> bool:
    """Whether a sample has no more frames than the file, and at least one."""
    frames = sum(len(entry.row.bytes) for entry in sample.media if entry.row)
    return 1 <= frames <= max(media.get("frames", 768), 2)
