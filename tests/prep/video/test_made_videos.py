"""Videos made here, in which every frame carries its number: each container and codec, by every library."""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lmms.configs.errors import BuildError
from lmms.prep.reject import Reject
from lmms.prep.video.decode import encoded_frames, probe
from lmms.prep.video.facts import Backend, FrameFormat, VideoFacts, VideoLimits
from lmms.prep.video.process import stop
from tests.kit.media.videos import number_of, video

COUNT = 40
LIMITS = VideoLimits(timeout_s=120)
LOOKS = [0, 1, 9, 10, 11, 19, 20, 30, 39]
"""Frames that are asked for one by one: beside key frames, of which there is one in ten frames, and at the ends."""
KINDS: dict[str, dict[str, Any]] = {
    "h264": {"options": {"g": "10", "bf": "2"}},
    "open groups": {"options": {"g": "10", "x264-params": "open-gop=1:bframes=3"}},
    "intra refresh": {"options": {"x264-params": "intra-refresh=1:keyint=10:bframes=0"}},
    "10 bits": {"pixels": "yuv420p10le", "options": {"g": "10"}},
    "interlaced": {"options": {"g": "10", "flags": "+ildct+ilme", "x264-params": "interlaced=1"}},
    "fragmented": {"options": {"g": "10"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "variable rate": {"times": [4 * i + i % 3 for i in range(COUNT)], "options": {"g": "10"}},
    "h264 mkv": {"container": "matroska", "options": {"g": "10", "bf": "2"}},
    "h264 ts": {"container": "mpegts", "options": {"g": "10", "bf": "2"}},
    "h264 flv": {"container": "flv", "options": {"g": "10"}},
    "h264 avi": {"container": "avi", "options": {"g": "10", "bf": "2"}},
    "hevc": {"codec": "libx265", "options": {"x265-params": "keyint=10:log-level=none"}},
    "hevc open groups": {
        "codec": "libx265",
        "container": "matroska",
        "options": {"x265-params": "keyint=10:open-gop=1:bframes=3:log-level=none"},
    },
    "vp8": {"codec": "libvpx", "container": "webm", "options": {"g": "10", "auto-alt-ref": "1", "lag-in-frames": "9"}},
    "vp9": {"codec": "libvpx-vp9", "container": "webm", "options": {"g": "10", "lag-in-frames": "9"}},
    "av1": {"codec": "libsvtav1", "options": {"g": "10"}},
    "mpeg4": {"codec": "mpeg4", "options": {"g": "10", "bf": "2"}},
    "mpeg4 avi": {"codec": "mpeg4", "container": "avi", "options": {"g": "10", "bf": "2"}},
    "mpeg2 ts": {"codec": "mpeg2video", "container": "mpegts", "options": {"g": "10", "bf": "2"}},
    "mpeg2 ps": {"codec": "mpeg2video", "container": "mpeg", "options": {"g": "10", "bf": "2"}},
    "mjpeg mov": {"codec": "mjpeg", "container": "mov", "pixels": "yuvj420p"},
    "prores": {"codec": "prores_ks", "container": "mov", "pixels": "yuv422p10le"},
    "gif": {"codec": "gif", "container": "gif", "pixels": "rgb8"},
}
CANNOT: dict[Backend, set[str]] = {
    "pyav": set(),
    "decord": {"av1", "h264 ts", "mpeg2 ts", "gif"},
    "torchcodec": {"h264 ts", "h264 avi", "mpeg4 avi", "mpeg2 ts", "mpeg2 ps"},
}
"""Kinds that a library does not decode in full; each is a reject."""


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    yield
    stop()


@cache
def made(kind: str) -> bytes:
    return video(COUNT, **KINDS[kind])


def pixels(data: bytes, indices: list[int], backend: Backend) -> list[NDArray[np.uint8]]:
    pictures = encoded_frames(data, indices, None, FrameFormat("png"), backend, LIMITS)
    return [np.asarray(Image.open(BytesIO(picture))) for picture in pictures]


@cache
def every_frame(kind: str) -> list[NDArray[np.uint8]]:
    return pixels(made(kind), list(range(COUNT)), "pyav")


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_counted_and_has_its_number(kind: str) -> None:
    facts = probe(made(kind), "pyav", LIMITS)
    assert (facts.frames, facts.size) == (COUNT, (64, 48))
    assert facts.fps == pytest.approx(25, rel=0.03)
    assert [number_of(frame) for frame in every_frame(kind)] == list(range(COUNT))


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_by_itself_is_the_frame_of_a_full_decode(kind: str) -> None:
    for index in LOOKS:
        (frame,) = pixels(made(kind), [index], "pyav")
        assert np.array_equal(frame, every_frame(kind)[index]), index
    for index, frame in zip(LOOKS, pixels(made(kind), LOOKS, "pyav"), strict=True):
        assert np.array_equal(frame, every_frame(kind)[index]), index


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["decord", "torchcodec"])
def test_another_library_gives_the_same_frames_or_a_reject(backend: Backend, kind: str) -> None:
    skip_without(backend)
    if kind in CANNOT[backend]:
        with pytest.raises(Reject, match="decode_error"):
            probed_and_decoded(made(kind), backend)
    else:
        facts, frames = probed_and_decoded(made(kind), backend)
        assert facts.frames == COUNT
        assert all(map(is_like, frames, every_frame(kind)))
        is_right = [is_like(pixels(made(kind), [index], backend)[0], every_frame(kind)[index]) for index in LOOKS]
        # Their jumps into a stream without key frames end before the whole picture is there: docs/media.md says so.
        assert all(is_right) == (kind != "intra refresh")


def probed_and_decoded(data: bytes, backend: Backend) -> tuple[VideoFacts, list[NDArray[np.uint8]]]:
    return probe(data, backend, LIMITS), pixels(data, list(range(COUNT)), backend)


def is_like(frame: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    return bool(np.abs(frame.astype(np.int64) - other).mean() < 0.5)


def skip_without(backend: Backend) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    try:
        probe(made("h264"), backend, LIMITS)
    except BuildError as error:  # of torchcodec, where the system has no FFmpeg
        pytest.skip(str(error))
