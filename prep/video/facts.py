"""What a video is, how its frames are asked for, and what may be spent on them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

VideoFile: TypeAlias = bytes | Path
"""A whole file, or the path of a regular one. Whoever asks has checked that the path may be read."""

Backend: TypeAlias = Literal["auto", "decord", "torchcodec", "pyav"]
"""The library that decodes. auto: see backends.py."""

NEEDS_VIDEO = "videos need the extra video: pip install 'lmms[video]'"
NEEDS_DECORD = "video_backend decord needs the package decord, for Linux on x86-64: pip install decord; or take auto"
NEEDS_TORCHCODEC = (
    "video_backend torchcodec needs the package torchcodec of the version for the installed torch, and the libraries of"
    " FFmpeg on the system; or take auto"
)
"""What to do where a library is not installed."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """A video as its frames show, not as its header states."""

    frames: int
    """Frames that decode, in the order in which they are shown; at least 1."""
    fps: float
    """Average frames per second, above 0: what the video processors of transformers take for this decoder."""
    size: tuple[int, int]
    """(width, height) in pixels of a frame as shown, after the rotation that the file asks for. The shape of a pixel
    (sample aspect ratio) changes nothing: the processors ignore it, too."""
    seconds: float
    """frames / fps, as the processors have it; with a variable rate not the time of the last frame."""
    container: str
    """mp4, matroska, avi, mpegts, mpeg, flv, ogg or gif."""
    codec: str
    """The decoder's name, such as h264."""
    has_audio: bool


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """How a frame is stored."""

    encoding: Literal["jpeg", "png"] = "jpeg"
    """png loses nothing. jpeg keeps the colour of every pixel (4:4:4)."""
    quality: int = 95
    """JPEG only, 1 to 100."""


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What one call may spend on one file."""

    timeout_s: float = 60.0
    """Wall time in seconds."""
    memory: int = 4 * 2**30
    """Bytes of main memory (on Linux; other systems have no such limit)."""
    max_pixels: int = 178_956_970
    """Pixels of a frame."""
    check: Literal["packets", "frames"] = "packets"
    """packets: the file is walked to its end, its first frame decoded, and all frames where packets do not tell their
    number. frames: every frame is decoded."""
