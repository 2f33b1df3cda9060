"""The ways in which records name sounds."""

from typing import Any

import pytest

from lmms.prep.media.read import MediaRef
from lmms.prep.records.parts import Audio
from lmms.prep.records.record import parse_record

PATH = MediaRef("path", "a.wav")


def sounds_of(*parts: dict[str, Any], **columns: Any) -> list[Audio]:
    turns = [{"role": "user", "content": list(parts)}, {"role": "assistant", "content": "b"}]
    read = parse_record({"messages": turns, **columns})
    assert read.unused == ()
    return [part for part in read.media if isinstance(part, Audio)]


@pytest.mark.parametrize(
    ("part", "ref"),
    [
        ({"type": "audio", "audio": "a.wav"}, PATH),
        ({"type": "audio", "audio": {"bytes": b"RIFF", "path": "a.wav"}}, MediaRef("bytes", b"RIFF")),
        ({"type": "audio", "audio": {"bytes": None, "path": "a.wav"}}, PATH),
        ({"type": "audio_url", "audio_url": {"url": "a%20b.wav"}}, MediaRef("url", "a%20b.wav")),
        ({"type": "audio_url", "audio_url": "a.wav"}, MediaRef("url", "a.wav")),
        ({"type": "audio", "audio_url": "a.wav"}, MediaRef("url", "a.wav")),
        ({"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}, MediaRef("base64", "UklG")),
        ({"type": "input_audio", "input_audio": {"data": "UklG"}, "text": None}, MediaRef("base64", "UklG")),
    ],
)
def test_a_part_names_its_sound(part: dict[str, Any], ref: MediaRef) -> None:
    assert sounds_of(part) == [Audio(ref, "messages[0].content[0]")]


@pytest.mark.parametrize("column", ["audios", "audio"])
@pytest.mark.parametrize("value", [["a.wav", None, b"RIFF"], '["a.wav", {"bytes": "UklG"}]'])
def test_bare_parts_take_the_entries_of_a_column_in_order(column: str, value: Any) -> None:
    first, second = sounds_of({"type": "audio"}, {"type": "audio", "audio": None, "audio_end": 2}, **{column: value})
    assert (first.ref, second.end) == (PATH, 2.0)
    assert second.ref in (MediaRef("bytes", b"RIFF"), MediaRef("base64", "UklG"))


def test_a_part_asks_for_a_clip() -> None:
    (sound,) = sounds_of({"type": "audio", "audio": "a.wav", "audio_start": 1, "audio_end": 2.5})
    assert (sound.start, sound.end) == (1.0, 2.5)
