"""The bytes of frames of videos by each choice of `video_frames` and `video_encoding`, measured on some videos."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lmms.prep.media.edit import pixels_of
from lmms.prep.reject import Reject
from lmms.prep.video.encode import encoded
from lmms.prep.video.facts import FrameFormat
from lmms.prep.video.resize import resized

Choice: TypeAlias = tuple[Literal["resized", "original"], Literal["jpeg", "png"]]
"""video_frames and video_encoding."""

CHOICES: tuple[Choice, ...] = (("resized", "jpeg"), ("resized", "png"), ("original", "jpeg"), ("original", "png"))

MOST_VIDEOS, MOST_FRAMES = 4, 3
"""Videos of a chunk that are measured, of up to 16, and frames of each."""


@dataclass(slots=True)
class FramePrices:
    """What some videos of a chunk would take in the shards."""

    stored: int = 0
    """Bytes of the frames of all samples, as the settings ask."""
    videos: int = 0
    """Videos that were measured."""
    measured: Counter[Choice] = field(default_factory=Counter)
    """Choice -> bytes of all frames of the measured videos, scaled from the frames that were encoded."""

    def add(self, other: "FramePrices") -> None:
        """Add the videos of another chunk."""
        self.stored += other.stored
        self.videos += other.videos
        self.measured += other.measured

    def measure(
        self,
        frames: int,
        read: Callable[[Sequence[int]], Sequence[bytes]],
        size: tuple[int, int],
        quality: int,
        are_files: bool,
    ) -> None:
        """Measure a video of so many frames, unless enough of the chunk were measured.

        read: places among its frames -> these frames in full size, as PNG or, if `are_files`, as the files of a list of
        frames, which are stored as they are. size: (width, height) in pixels after the resize. quality: of JPEGs.
        """
        if self.videos >= MOST_VIDEOS:
            return
        count = min(frames, MOST_FRAMES)
        with suppress(Reject):  # the frames of the sample were read before: the record stays
            taken = Counter[Choice]()
            for data in read([frames * (2 * i + 1) // (2 * count) for i in range(count)]):
                taken.update(_bytes_of(data, size, FrameFormat("jpeg", quality), are_files))
            self.measured.update({choice: bytes_ * frames // count for choice, bytes_ in taken.items()})
            self.videos += 1


def _bytes_of(data: bytes, size: tuple[int, int], jpeg: FrameFormat, is_file: bool) -> dict[Choice, int]:
    """Choice -> bytes of a frame. data: its picture in full size."""
    pixels = pixels_of(data)
    as_seen = resized(pixels, *size)
    return {
        ("resized", "jpeg"): len(encoded(as_seen, jpeg)),
        ("resized", "png"): len(encoded(as_seen, FrameFormat("png"))),
        ("original", "jpeg"): len(data) if is_file else len(encoded(pixels, jpeg)),
        ("original", "png"): len(data),
    }
