"""What the parts and packets of a file say: whether it is whole, and whether packets are frames."""

from collections.abc import Iterator
from io import BytesIO

import pytest

from lmms.prep.reject import Reject
from lmms.prep.video.container import container_of
from lmms.prep.video.decode import probe
from lmms.prep.video.facts import VideoLimits
from lmms.prep.video.packets import shows_first, walked
from lmms.prep.video.process import stop
from tests.kit.media.videos import video

LIMITS = VideoLimits()


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    yield
    stop()


@pytest.mark.parametrize("container", ["mp4", "matroska", "avi"])
def test_a_file_that_is_cut_anywhere_is_rejected(container: str) -> None:
    data = video(40, container, "mpeg4" if container == "avi" else "libx264")
    assert probe(data, "auto", LIMITS).frames == 40
    for cut in (1, 2, 8, *range(100, len(data) - 100, 97)):
        with pytest.raises(Reject):
            probe(data[:-cut], "auto", LIMITS)


def test_a_fragmented_file_that_is_cut_is_rejected_or_ends_with_a_fragment() -> None:
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    data = video(40, options={"g": "10", "bf": "0"}, container_options=fragments)
    for end in range(data.index(b"moof") - 4, len(data), 29):
        assert frames_of(data[:end]) in (None, 10, 20, 30, 40), end
    for box in (b"moof", b"mdat"):
        assert frames_of(data[: data.rindex(box) + 20]) is None
    assert frames_of(data[: data.rindex(b"mdat") - 4]) is None


def frames_of(data: bytes) -> int | None:
    """None for a reject."""
    try:
        return probe(data, "auto", LIMITS).frames
    except Reject:
        return None


def test_bytes_behind_the_end_are_no_fault() -> None:
    for container in ("mp4", "matroska", "avi"):
        data = video(5, container, "mpeg4" if container == "avi" else "libx264")
        assert probe(data + b"and some words", "auto", LIMITS).frames == 5


def test_packets_are_frames_only_where_the_first_frames_show_it() -> None:
    """Each field of a frame may be a packet: then a frame has the time of every second one."""
    file = BytesIO(video(10))
    container = container_of(file)
    stamps = walked(file, container, LIMITS).stamps
    assert shows_first(file, container, LIMITS, stamps)
    fields = sorted([*stamps, *(stamp + 1 for stamp in stamps)])
    assert not shows_first(file, container, LIMITS, fields)
