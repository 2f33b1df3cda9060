"""Lines in chunks: by rows and bytes, and fewer where the lines name videos."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmms.prep.rows.chunk import CHUNK_ROWS
from lmms.prep.rows.lines import read_lines


def chunks(folder: Path, record: dict[str, Any], number: int) -> list[int]:
    """Lines of each chunk of a file of this record."""
    file = folder / "a.jsonl"
    file.write_text((json.dumps(record) + "\n") * number)
    return [len(lines) for lines, _ in read_lines(file)]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "video", "video": "a.mp4"}],
        [{"type": "video_url", "video_url": {"url": "a.mp4"}}],
    ],
)
def test_a_chunk_holds_few_videos(tmp_path: Path, content: Any) -> None:
    record = {"messages": [{"role": "user", "content": content}]}
    assert chunks(tmp_path, record, 40) == [16, 16, 8]


def test_several_videos_of_a_record_count_each(tmp_path: Path) -> None:
    parts = [{"type": "video", "video": name} for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4")]
    assert chunks(tmp_path, {"messages": [{"role": "user", "content": parts}]}, 8) == [4, 4]


def test_text_about_videos_is_text(tmp_path: Path) -> None:
    record = {"messages": [{"role": "user", "content": 'The key is called "video": or "videos": here.'}]}
    assert chunks(tmp_path, record, CHUNK_ROWS + 5) == [CHUNK_ROWS, 5]
