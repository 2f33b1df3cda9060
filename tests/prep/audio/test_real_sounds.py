"""The real sounds of ../shared: counts are those of a full decode; broken files have a reason."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmms.configs.contract.media.sounds import samples_of
from lmms.prep.audio.decode import encoded_sound, probe_sound
from lmms.prep.audio.facts import SoundFacts, SoundFormat
from lmms.prep.reject import Reject
from lmms.prep.video.facts import VideoLimits
from lmms.prep.video.process import stop
from tests.kit.media.av import records_of

LIMITS = VideoLimits()
RATE = 16000
FORM = SoundFormat()
REASONS = {"not_media": "not_a_sound"}
"""Reasons of the expected file that have another name here."""
PATHS = ("a-absolute", "a-https")
"""Edge cases of paths that records reject before a file is opened."""


@pytest.fixture(scope="module")
def folder(shared: Path) -> Iterator[Path]:
    yield shared / "data" / "av"
    stop()


def probed(file: Path) -> SoundFacts | str:
    """The facts of a file, or why there are none."""
    try:
        return probe_sound(file, LIMITS)
    except Reject as reject:
        return reject.reason


def test_every_real_sound_has_the_samples_of_a_full_decode(folder: Path) -> None:
    info: dict[str, Any] = json.loads((folder / "media_info.json").read_text("utf-8"))
    sounds = {name: facts for name, facts in info.items() if name.startswith("audio/")}
    assert len(sounds) == 159
    for name, wanted in sounds.items():
        facts = probe_sound(folder / name, LIMITS)
        assert (facts.samples, facts.sample_rate, facts.channels, facts.codec) == (
            wanted["samples"],
            wanted["sample_rate"],
            wanted["channels"],
            wanted["codec"].removesuffix("float"),
        ), name
        assert facts.seconds == pytest.approx(wanted["duration_s"], abs=1e-4)


def test_every_real_sound_is_stored_at_another_rate_with_its_length(folder: Path) -> None:
    files = [file for file in sorted((folder / "audio").rglob("*.*")) if "fsdd" not in file.parts]
    assert len(files) == 24
    for file in files:
        facts = probe_sound(file, LIMITS)
        data, number = encoded_sound(file, RATE, FORM, LIMITS)
        samples = samples_of(data)
        assert samples.shape == (number,)
        assert number == int(np.ceil(facts.samples * (float(RATE) / facts.sample_rate)))
        assert 0.01 < np.abs(samples).max() <= 1


def test_the_sound_of_a_video_is_there_where_the_video_has_one(folder: Path) -> None:
    info: dict[str, Any] = json.loads((folder / "media_info.json").read_text("utf-8"))
    videos = {name: facts["has_audio"] for name, facts in info.items() if name.startswith("video/")}
    assert set(videos.values()) == {True, False}
    for name, has_audio in videos.items():
        found = probed(folder / name)
        assert (found == "no_audio_stream") != has_audio, (name, found)


def test_every_edge_case_is_as_expected(folder: Path) -> None:
    expected = json.loads((folder / "edge_cases.expected.json").read_text("utf-8"))["records"]
    cases = 0
    for record in records_of(folder / "edge_cases.jsonl.zst"):
        part = record["messages"][0]["content"][0]
        name = part.get("audio") if isinstance(part, dict) and part.get("type") == "audio" else None
        if not record["id"].startswith("a-") or not isinstance(name, str) or record["id"] in PATHS:
            continue
        cases += 1
        wanted = expected[record["id"]]
        facts = probed(folder / name)
        if isinstance(facts, str):
            reasons = [wanted.get("reason"), *wanted.get("reason_also_ok", ())]
            assert facts in [REASONS.get(reason, reason) for reason in reasons], record["id"]
            continue
        assert wanted["outcome"] == "accepted", record["id"]
        media = wanted["media"]
        assert facts.samples == media["samples"], record["id"]
        assert (facts.sample_rate, facts.channels) == (media["sample_rate"], media["channels"]), record["id"]
        data, number = encoded_sound(folder / name, RATE, FORM, LIMITS)
        assert len(samples_of(data)) == number == int(np.ceil(facts.samples * (float(RATE) / facts.sample_rate)))
    assert cases == 27


def test_opposite_channels_are_silence_and_loud_samples_are_cut(folder: Path) -> None:
    opposite, _ = encoded_sound(folder / "edge_cases" / "opposite.wav", RATE, FORM, LIMITS)
    assert not samples_of(opposite).any()
    loud, _ = encoded_sound(folder / "edge_cases" / "loud.wav", RATE, FORM, LIMITS)
    samples = samples_of(loud)
    assert (samples.min(), samples.max()) == (-1, 1 - 2**-15)
