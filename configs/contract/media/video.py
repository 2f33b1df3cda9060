"""Which frames of a video a model sees, at which size and at which times. No other module knows these rules.

The rules are those of the video processors of transformers 5 (models/qwen2_vl and models/qwen3_vl,
video_processing_*.py), with the range of a clip from `calculate_video_frame_range` of qwen_vl_utils 0.0.14. Frames are
counted from 0; a row is the frames that the vision tower reads together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from lmms.configs.contract.media.geometry import MAX_ASPECT_RATIO, Vision, aspect_ratio, resized


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRule:
    """The settings of a video processor, as read from video_preprocessor_config.json."""

    areas: Literal["frame", "video"]
    """Whether the limits of the area are for a frame, or for all frames of a video together."""
    min_pixels: int
    max_pixels: int
    fps: float
    """Frames a second that are sampled, unless a record says otherwise."""
    min_frames: int
    max_frames: int
    asked_pace: bool = False
    """Whether rows follow each other at the rate that is asked for, and not at that of the sampled frames."""

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "min_frames", "max_frames"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} of videos is {value!r}, expected a whole number above 0")
        if not isinstance(self.fps, int | float) or not 0 < self.fps < math.inf:
            raise ValueError(f"fps of videos is {self.fps!r}, expected a number above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoAsk:
    """What a record, a source or a build asks for a video; None: not stated."""

    fps: float | None = None
    """Frames a second; not with `nframes`."""
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    """Smallest area of a frame after the resize."""
    max_pixels: int | None = None
    """Largest area of a frame after the resize."""
    total_pixels: int | None = None
    """Largest area of all frames together."""
    start: float | None = None
    """Seconds at which the clip begins."""
    end: float | None = None
    """Seconds at which the clip ends."""


def asked(asks: Sequence[VideoAsk]) -> VideoAsk:
    """For each setting the first of `asks` that states it; of fps and nframes, which exclude each other, the first."""
    first: dict[str, Any] = {
        name: next((v for ask in asks if (v := getattr(ask, name)) is not None), None) for name in _NAMES
    }
    paced = next((ask for ask in asks if ask.fps is not None or ask.nframes is not None), VideoAsk())
    return VideoAsk(**{**first, "fps": paced.fps, "nframes": paced.nframes})


_NAMES = tuple(field.name for field in fields(VideoAsk))


def clip_range(frames: int, fps: float, ask: VideoAsk) -> range:
    """The frames of a video between the two times that are asked for. Raises ValueError for a range without frames."""
    first, last = 0, frames - 1
    if ask.start is not None:
        first = math.ceil(min(max(ask.start, 0.0), frames / fps) * fps)
    if ask.end is not None:
        last = min(math.floor(min(max(ask.end, 0.0), frames / fps) * fps), frames - 1)
    if first > last or (first == last and (ask.start is not None or ask.end is not None)):
        asked_for = f"from {ask.start or 0:g} s to {'the end' if ask.end is None else f'{ask.end:g} s'}"
        raise ValueError(f"there are no frames {asked_for} of a video of {frames / fps:g} s")
    return range(first, last + 1)


def sampled_frames(frames: int, fps: float, ask: VideoAsk, rule: VideoRule, temporal_patch_size: int) -> list[int]:
    """Numbers of the frames of a clip of so many frames that the model sees, from 0, in order.

    fps: of the clip. A clip of one frame gives the frame twice. Raises ValueError where more frames are asked for than
    there are.
    """
    if frames == 1:
        return [0] * temporal_patch_size
    count = (_by_whole_rows if rule.areas == "frame" else _by_rate)(frames, fps, ask, rule, temporal_patch_size)
    if count > frames or count < 1:
        raise ValueError(f"{ask.nframes} frames are asked for, the clip has {frames}")
    if rule.areas == "video":
        return [int(i) for i in np.linspace(0, frames - 1, count).round()]
    step = frames / count
    return [int(i) for i in (np.arange(math.ceil(frames / step)) * step).astype(np.float32)]


def _by_whole_rows(frames: int, fps: float, ask: VideoAsk, rule: VideoRule, row: int) -> int:
    if ask.nframes is not None:
        return round(ask.nframes / row) * row
    least, most = ask.min_frames or rule.min_frames, ask.max_frames or rule.max_frames
    most = min(most, frames) // row * row
    return math.floor(min(max(frames / fps * (ask.fps or rule.fps), least), most, frames) / row) * row


def _by_rate(frames: int, fps: float, ask: VideoAsk, rule: VideoRule, row: int) -> int:
    if ask.nframes is not None:
        return ask.nframes
    least, most = ask.min_frames or rule.min_frames, ask.max_frames or rule.max_frames
    return min(max(int(frames / fps * (ask.fps or rule.fps)), least), most, frames)


def frame_size(height: int, width: int, frames: int, ask: VideoAsk, rule: VideoRule, vision: Vision) -> tuple[int, int]:
    """(height, width) in pixels after the resize of each of so many sampled frames. Raises ValueError."""
    if rule.areas == "frame":
        most = ask.max_pixels or rule.max_pixels
        least = _least(ask.min_pixels, rule, most)
        if ask.total_pixels:
            share = ask.total_pixels * vision.temporal_patch_size // frames
            most = max(min(most, share), int(least * 1.05))
        _check_areas(least, most)
        return resized(height, width, replace(vision, min_pixels=least, max_pixels=most))
    most = ask.total_pixels or rule.max_pixels
    if ask.max_pixels:
        most = min(most, ask.max_pixels * frames)
    least = _least(ask.min_pixels and ask.min_pixels * frames, rule, most)
    _check_areas(least, most)
    return _resized_together(frames, height, width, least, most, vision)


def _least(asked_for: int | None, rule: VideoRule, most: int) -> int:
    """The smallest area; if a record asks for less than the smallest of the processor, any area will do."""
    return asked_for or (rule.min_pixels if rule.min_pixels <= most else 1)


def _check_areas(least: int, most: int) -> None:
    if least > most:
        raise ValueError(f"the smallest area, {least} pixels, is above the largest, {most}")


def _resized_together(frames: int, height: int, width: int, least: int, most: int, vision: Vision) -> tuple[int, int]:
    factor, row = vision.factor, vision.temporal_patch_size
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    if aspect_ratio(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"aspect ratio {aspect_ratio(height, width):.1f}, at most {MAX_ASPECT_RATIO} is possible")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    area = round(frames / row) * row * new_height * new_width
    if area > most:
        shrink = math.sqrt(frames * height * width / most)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif area < least:
        grow = math.sqrt(least / (frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def row_step(frames: int, count: int, fps: float, ask: VideoAsk, rule: VideoRule, temporal_patch_size: int) -> float:
    """Seconds from a row to the next. frames: of the clip; count: of them sampled; fps: of the clip."""
    rate = (ask.fps or rule.fps) if rule.asked_pace else count / frames * fps
    return temporal_patch_size / rate


def rows_of(numbers: Sequence[int], temporal_patch_size: int) -> list[tuple[int, ...]]:
    """The frames of each row: as many as the tower reads together, the last row maybe fewer."""
    return [tuple(numbers[i : i + temporal_patch_size]) for i in range(0, len(numbers), temporal_patch_size)]


def row_time(seconds: Sequence[float]) -> float:
    """The time of a row, from the times of its frames: in the middle of the first and the last."""
    return (seconds[0] + seconds[-1]) / 2
