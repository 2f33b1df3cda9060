"""Damaged, odd and hostile videos of ../shared: each is taken as expected, or rejected for a right reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.contract.pack import Pack
from lmms.prep.video.process import stop
from tests.kit.media.av import edge_cases, made_of, wrong_outcomes


@pytest.fixture(scope="module", autouse=True)
def no_decoder_is_left() -> Iterator[None]:
    yield
    stop()


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_every_edge_case_of_videos_is_taken_or_rejected_as_expected(
    name: str, shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    av = shared / "data" / "av"
    records = edge_cases(av, "v")
    assert len(records) >= 30
    _, made = made_of(records, av, model_folders[name], tmp_path)
    assert wrong_outcomes(records, made, av, is_whole) == {}


def is_whole(record: dict[str, Any], sample: Pack, media: dict[str, Any]) -> bool:
    """Whether a sample has no more frames than the file, and at least one."""
    frames = sum(len(entry.row.bytes) for entry in sample.media if entry.row)
    return 1 <= frames <= max(media.get("frames", 768), 2)
