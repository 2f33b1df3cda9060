"""The libraries that decode are held to one another: what two of them give for a file is the same, or a reject."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lmms.configs.errors import BuildError
from lmms.prep.reject import Reject
from lmms.prep.video.decode import encoded_frames, probe
from lmms.prep.video.facts import Backend, FrameFormat, VideoLimits
from lmms.prep.video.process import stop

LIMITS = VideoLimits(timeout_s=120)
CANNOT: dict[Backend, set[str]] = {
    "decord": {"waving_h264.webm", "mini.gif", "tiny_16x16.mkv"},  # no duration, no duration, pixels of 4 bytes
    "torchcodec": {"makeup.avi"},  # counts a frame more than there are
}
EDGE = ("one_frame.mp4", "three_frames.mp4", "unordered.mov", "tiny_16x16.mkv", "mini.gif", "starts_at_5s.mkv")


@pytest.fixture(scope="module")
def files(shared: Path) -> Iterator[list[Path]]:
    folder = shared / "data" / "av"
    yield [
        *(file for file in sorted((folder / "video").iterdir()) if file.is_file()),
        *(folder / "edge_cases" / e for e in EDGE),
    ]
    stop()


@pytest.fixture(params=["decord", "torchcodec"])
def backend(request: pytest.FixtureRequest, files: list[Path]) -> Backend:
    name: Backend = request.param
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    try:
        probe(files[0], name, LIMITS)
    except BuildError as error:  # of torchcodec, where the system has no FFmpeg
        pytest.skip(str(error))
    return name


def pixels(file: Path, indices: list[int], backend: Backend) -> list[NDArray[np.int64]]:
    pictures = encoded_frames(file, indices, None, FrameFormat("png"), backend, LIMITS)
    return [np.asarray(Image.open(BytesIO(picture))).astype(np.int64) for picture in pictures]


def test_what_a_library_decodes_is_what_pyav_decodes(backend: Backend, files: list[Path]) -> None:
    reasons = {file.name: reason for file in files if (reason := difference(file, backend))}
    assert set(reasons.values()) <= {"decode_error", "unsupported_format"}, reasons
    assert set(reasons) == CANNOT[backend]


def difference(file: Path, backend: Backend) -> str:
    """What the library says or does otherwise than PyAV: a reason of a reject, "facts" or "pixels"; "" for nothing."""
    reference = probe(file, "pyav", LIMITS)
    indices = sorted({0, reference.frames // 3, reference.frames // 2, reference.frames - 1})
    try:
        facts = probe(file, backend, LIMITS)
        frames = pixels(file, indices, backend)
    except Reject as reject:
        return reject.reason
    if facts.fps != pytest.approx(reference.fps, rel=0.1) or replace(facts, fps=0, seconds=0) != replace(
        reference, fps=0, seconds=0
    ):
        return "facts"
    others = pixels(file, indices, "pyav")
    is_like = [a.shape == b.shape and np.abs(a - b).mean() < 0.5 for a, b in zip(frames, others, strict=True)]
    return "" if all(is_like) else "pixels"


def test_auto_is_pyav(files: list[Path]) -> None:
    for file in files[:3]:
        assert probe(file, "auto", LIMITS) == probe(file, "pyav", LIMITS)
