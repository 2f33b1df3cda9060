"""The real videos of ../shared: counts, sizes and pixels are those of a full decode; broken files have a reason."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lmms.prep.reject import Reject
from lmms.prep.video.decode import encoded_frames, probe
from lmms.prep.video.facts import FrameFormat, VideoFacts, VideoLimits
from lmms.prep.video.process import stop

NAMES = (
    *("arm_hevc.mp4", "arm_mjpeg.avi", "arm_odd_161x121.mp4", "arm_sar2.mp4", "arm_vp9.webm", "arm_wrestling.mp4"),
    *("arm_wrestling_boxes_6fps.mp4", "baby_reading.mp4", "bigbuckbunny.mp4", "carphone_lowbitrate.mp4"),
    *("cockatoo.mp4", "drawing_guitar.mp4", "flipping_a_pancake.mkv", "keyboard_0.mov", "keyboard_180.mov"),
    *("keyboard_90.mov", "makeup.avi", "pancake_1fps.mp4", "pancake_60fps.mp4", "pancake_fragmented.mp4"),
    *("pancake_rot90.mp4", "pancake_vfr.mp4", "plant_window.mp4", "pool.mp4", "waving_h264.webm"),
    "woman_cooking.avi",
)
EDGE_CASES = (
    *(("v-zero-byte", "zero.mp4"), ("v-text", "text.mp4"), ("v-moov-missing", "moov_missing.mp4")),
    *(("v-tail-missing", "tail_missing.mp4"), ("v-corrupted", "corrupted_bars.mp4"), ("v-no-frames", "no_frames.mp4")),
    *(("v-one-frame", "one_frame.mp4"), ("v-three-frames", "three_frames.mp4"), ("v-audio-only", "audio_only.mp4")),
    *(("v-unordered", "unordered.mov"), ("v-tiny-16x16", "tiny_16x16.mkv"), ("v-gif", "mini.gif")),
    *(("v-long-900s-1fps", "long_900s_1fps.mp4"), ("v-jpeg-named-mp4", "still_jpeg.mp4")),
    ("v-starts-at-5s", "starts_at_5s.mkv"),
)
LOSSLESS = FrameFormat("png")
REASONS = {"not_media": "not_a_video"}
"""Reasons of the expected file that have another name here."""


@pytest.fixture(scope="module")
def folder(shared: Path) -> Iterator[Path]:
    yield shared / "data" / "av"
    stop()


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """Name of a file -> what a full decode gave."""
    info: dict[str, Any] = json.loads((folder / "media_info.json").read_text("utf-8"))
    return info


def pixels(picture: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(picture)))


def decoded_in_full(file: Path) -> list[NDArray[np.uint8]]:
    """Every frame in the way of transformers' reader for PyAV, turned as the frame asks."""
    with av.open(str(file)) as video:
        return [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in video.decode(video=0)]


def test_all_files_are_here(folder: Path) -> None:
    assert {file.name for file in (folder / "video").iterdir() if file.is_file()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_facts_are_those_of_a_full_decode(name: str, folder: Path, expected: dict[str, Any]) -> None:
    facts = probe(folder / "video" / name, "pyav", VideoLimits())
    info = expected[f"video/{name}"]
    assert (facts.frames, facts.size) == (info["frames"], (info["width"], info["height"]))
    assert (facts.codec, facts.has_audio) == (info["codec"], info["has_audio"])
    assert facts.fps == pytest.approx(info["container_fps"], abs=1e-3)
    assert facts.seconds == pytest.approx(facts.frames / facts.fps)
    assert probe((folder / "video" / name).read_bytes(), "pyav", VideoLimits(check="frames")) == facts


@pytest.mark.parametrize("name", NAMES)
def test_every_frame_has_the_pixels_of_a_full_decode(name: str, folder: Path) -> None:
    file = folder / "video" / name
    reference = decoded_in_full(file)
    last = len(reference) - 1
    indices = [last, 0, last // 2, last // 2, last // 3]
    pictures = encoded_frames(file, indices, None, LOSSLESS, "pyav", VideoLimits())
    for index, picture in zip(indices, pictures, strict=True):
        assert np.array_equal(pixels(picture), reference[index])


@pytest.mark.parametrize(("case", "file"), EDGE_CASES)
def test_an_edge_case_is_accepted_or_rejected_as_expected(case: str, file: str, folder: Path) -> None:
    rule = json.loads((folder / "edge_cases.expected.json").read_text("utf-8"))["records"][case]
    outcomes = [rule, rule.get("outcome_also_ok", rule)]
    reasons = {each["reason"] for each in outcomes if each["outcome"] == "rejected"} | {*rule.get("reason_also_ok", ())}
    outcome = reason_or_facts(folder / "edge_cases" / file)
    if isinstance(outcome, str):
        assert outcome in {REASONS.get(reason, reason) for reason in reasons}
    else:
        assert "accepted" in {each["outcome"] for each in outcomes}
        media = rule["media"]
        assert (outcome.frames, outcome.size) == (media["frames"], (media["width"], media["height"]))


def reason_or_facts(file: Path) -> str | VideoFacts:
    try:
        return probe(file, "pyav", VideoLimits(check="frames"))
    except Reject as reject:
        return reject.reason


def test_a_frame_behind_damage_is_rejected(folder: Path) -> None:
    file = folder / "edge_cases" / "corrupted_bars.mp4"
    assert probe(file, "pyav", VideoLimits()).frames == 50
    assert len(encoded_frames(file, [0, 27], None, FrameFormat(), "pyav", VideoLimits())) == 2
    with pytest.raises(Reject, match="decode_error"):
        encoded_frames(file, [0, 40], None, FrameFormat(), "pyav", VideoLimits())
