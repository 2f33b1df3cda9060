"""The videos of a record: a file, or the files of their frames, and what the record asks for them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmms.configs.contract.media.video import VideoAsk
from lmms.prep.media.read import MediaRef
from lmms.prep.records.media.bare import Bare, parse_column
from lmms.prep.records.media.pictures import image_ref
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

SOUND_TRACK = "use_audio_in_video"
"""Asks for the sound of a video, too: of a part, or of a record."""
_WHOLE = ("nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels")
_RATES = ("fps", "sample_fps")
_TIMES = ("video_start", "video_end")
_NUMBERS = (*_WHOLE, *_RATES, *_TIMES)
VIDEO_ASKS = (*_NUMBERS, SOUND_TRACK)
"""Keys of a video part besides the video itself, as in qwen_vl_utils."""


@dataclass(frozen=True, slots=True)
class VideoFiles:
    """A video file, or the pictures that are its frames, in order."""

    refs: tuple[MediaRef, ...]
    is_frames: bool


def parse_videos(raw: Mapping[str, Any]) -> Bare[VideoFiles]:
    """What the bare video parts of a record take: the entries of `videos`, or of `video` where there is no `videos`.

    An entry is a file, or the list of its frames. Raises Reject.
    """
    return parse_column(raw, "video", video_files)


def video_files(value: Any, place: str) -> VideoFiles:
    """The files that a part or an entry names. Raises Reject."""
    if not isinstance(value, list):
        return VideoFiles((image_ref(value, place, "video"),), is_frames=False)
    if not value:
        raise Reject("bad_part", "a video of no frames: the list is empty", place)
    return VideoFiles(tuple(image_ref(frame, f"{place}[{i}]") for i, frame in enumerate(value)), is_frames=True)


def video_ask(part: Mapping[str, Any], files: VideoFiles, place: str) -> tuple[VideoAsk, float | None]:
    """What a part asks for its video, and the frames a second of a video that is a list of frames. Raises Reject."""
    refuse_sound_track(part, place)
    numbers = {key: _number(key, value, place) for key in _NUMBERS if (value := part.get(key)) is not None}
    if "fps" in numbers and "nframes" in numbers:
        raise Reject("bad_part", "both `fps` and `nframes`; expected one of them", place)
    for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
        if numbers.get(low, 0) > numbers.get(high, math.inf):
            raise Reject("bad_part", f"{low} {numbers[low]:g} is above {high} {numbers[high]:g}", place)
    sampling = [key for key in numbers if key not in ("sample_fps", "min_pixels", "max_pixels", "total_pixels")]
    if files.is_frames and sampling:
        raise Reject(
            "bad_part", f"`{sampling[0]}` for a list of frames, which are all taken; expected sample_fps", place
        )
    if not files.is_frames and "sample_fps" in numbers:
        raise Reject("bad_part", "`sample_fps` is for a list of frames; for a file expected fps", place)
    rate = numbers.pop("sample_fps", None)
    start, end = numbers.pop("video_start", None), numbers.pop("video_end", None)
    if start is not None and end is not None and start >= end:
        raise Reject("bad_range", f"video_start {start:g} is not before video_end {end:g}", place)
    whole: dict[str, Any] = {key: int(value) for key, value in numbers.items() if key != "fps"}
    return VideoAsk(**whole, fps=numbers.get("fps"), start=start, end=end), rate


def refuse_sound_track(asks: Mapping[str, Any], place: str) -> None:
    """Reject for a part or a record that asks for the sound of a video, which no model hears here yet."""
    if asks.get(SOUND_TRACK) not in (None, False):
        message = f"`{SOUND_TRACK}`: the sound of a video is not heard; give the sound as an audio part, or set false"
        raise Reject("audio_unsupported", message, place)


def _number(key: str, value: Any, place: str) -> float:
    """Tables write whole numbers as floats where other rows have none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
    if key in _WHOLE and not (is_number and value >= 1 and value == int(value)):
        raise Reject("bad_part", f"`{key}` is {str(value)[:40]!r}, expected a whole number above 0", place)
    if key in _RATES and not (is_number and value > 0):
        raise Reject("bad_part", f"`{key}` is {str(value)[:40]!r}, expected a number above 0", place)
    if not is_number or value < 0:
        shown = kind_of(value) if not is_number else f"{value:g}"
        raise Reject("bad_part", f"`{key}` is {shown}, expected seconds from 0", place)
    return float(value)
