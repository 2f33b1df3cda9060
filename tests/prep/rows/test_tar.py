"""WebDatasets: members of one key are a record, with their bytes in place of their names."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.errors import SourceError
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.chunks import chunk_values, read_chunks
from lmms.prep.first_records import read_records
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.sources import find_sources

PART = {"type": "image", "image": "1.jpg"}


def values(file: Path) -> list[Any]:
    sources, _ = find_sources([str(file)], None)
    return [value for chunk in read_chunks(sources) for _, value in chunk_values(chunk, sources[chunk.source].columns)]


def write(file: Path, members: dict[str, Any], mode: Any = "w") -> Path:
    with tarfile.open(file, mode) as tar:
        for name, content in members.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")]
)
def test_members_of_one_key_are_a_record(name: str, mode: str, tmp_path: Path) -> None:
    members = {
        "d/1.json": {"messages": [{"content": [PART]}]},
        "d/1.jpg": b"JPEG 1",
        "d/1.txt": b"words",
        "d/2.left.png": b"PNG l",
        "d/2.right.png": b"PNG r",
        "d/2.json": {"messages": []},
        "e/1.json": {"text": "1.jpg"},
        "._3.json": {},
        "4.json": b"{",
        "5.jpg": b"alone",
        "5.WAV": b"sound",
    }
    rows = values(write(tmp_path / name, members, mode))
    assert rows[0] == {"messages": [{"content": [{"type": "image", "image": b"JPEG 1"}]}], "txt": "words"}
    assert rows[1] == {"messages": [], "images": [b"PNG l", b"PNG r"]}
    assert rows[2] == {"text": "1.jpg"}
    assert isinstance(rows[3], Reject)
    assert rows[3].reason == "invalid_json"
    assert rows[4] == {"images": [b"alone"], "audios": [b"sound"]}
    assert len(rows) == 5


def test_a_text_that_is_the_name_of_a_member_stays_a_text(tmp_path: Path) -> None:
    record = {"messages": [{"content": "1.jpg"}], "images": ["d/1.jpg", {"path": "1.jpg"}]}
    (row,) = values(write(tmp_path / "a.tar", {"d/1.jpg": b"JPEG", "d/1.json": record}))
    assert row == {"messages": [{"content": "1.jpg"}], "images": [b"JPEG", {"path": b"JPEG"}]}


def test_a_record_that_names_its_picture_keeps_its_sound(tmp_path: Path) -> None:
    """Media of a kind of which the record names none: nothing of a key is lost in silence."""
    members = {"1.jpg": b"JPEG", "1.wav": b"sound", "1.json": {"images": ["1.jpg"], "messages": []}}
    (row,) = values(write(tmp_path / "a.tar", members))
    assert row == {"audios": [b"sound"], "images": [b"JPEG"], "messages": []}


def test_sounds_and_videos_are_named_like_pictures(tmp_path: Path) -> None:
    parts = [{"type": "audio", "audio": "1.b.aac"}, {"type": "video", "video": "1.mp4"}]
    members = {"1.a.opus": b"a", "1.b.aac": b"b", "1.mp4": b"v"}
    named = {**members, "1.json": {"messages": [{"content": parts}], "audios": ["1.b.aac", "1.a.opus"]}}
    (row,) = values(write(tmp_path / "a.tar", named))
    assert row["messages"] == [{"content": [{"type": "audio", "audio": b"b"}, {"type": "video", "video": b"v"}]}]
    assert row["audios"] == [b"b", b"a"]
    assert "videos" not in row
    (row,) = values(write(tmp_path / "b.tar", {**members, "1.json": {}}))
    assert row == {"audios": [b"a", b"b"], "videos": [b"v"]}


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz")])
def test_a_cut_off_tar_file_is_never_a_shorter_one(name: str, mode: str, tmp_path: Path) -> None:
    file = write(tmp_path / name, {f"{i}.json": {"n": i, "text": "x" * 600} for i in range(30)}, mode)
    data = file.read_bytes()
    refused = 0
    for cut in range(1, len(data), len(data) // 70):
        file.write_bytes(data[:cut])
        try:
            assert len(values(file)) == 30  # the end of the padding is gone
        except SourceError:
            refused += 1
    assert refused > 50


def test_a_header_that_is_damaged_in_the_middle_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar", {f"{i}.json": {"n": i} for i in range(5)})
    data = bytearray(file.read_bytes())
    data[2 * 1024 + 150] ^= 1  # in the checksum of the third header
    file.write_bytes(data)
    with pytest.raises(SourceError, match=r"a\.tar: .*a header is damaged"):
        values(file)


def read(file: Path, **settings: Any) -> list[Any]:
    return [record for _, _, record in read_records([SourceConfig(path=str(file), **settings)])]


def test_pictures_with_captions_are_read_with_the_settings_that_the_error_names(tmp_path: Path) -> None:
    captions: dict[str, Any] = {
        name: content
        for i in range(20)
        for name, content in ((f"{i}.jpg", b"JPEG"), (f"{i}.txt", f"a dog {i}".encode()))
    }
    advice = r"form: veomni and fields: \{conversations: txt\}"
    with pytest.raises(SourceError, match=rf"columns images, txt; .*{advice}"):
        read(write(tmp_path / "a.tar", captions))
    (first, *_) = read(tmp_path / "a.tar", form="veomni", fields={"conversations": "txt"})
    assert isinstance(first, Record)
    assert [(turn.role, len(turn.images)) for turn in first.messages] == [("user", 1), ("assistant", 0)]
    assert first.messages[1].text == "a dog 0"
    turns = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    mixed = write(tmp_path / "mixed.tar", {f"{i:03d}.json": turns for i in range(20)} | captions)
    rejects = [record for record in read(mixed) if isinstance(record, Reject)]
    assert len(rejects) == 20
    assert re.search(advice, rejects[0].message)


def test_texts_of_a_tar_file_are_read_with_the_settings_that_the_error_names(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar", {f"{i}.txt": b"words" for i in range(20)})
    with pytest.raises(SourceError, match=r"form: text and fields: \{text: txt\}"):
        read(file)
    assert len(read(file, form="text", fields={"text": "txt"})) == 20
