"""PyAV: facts and frames of a file, with every packet counted and every frame known by its time stamp."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import BinaryIO, cast

import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.facts import VideoFacts, VideoLimits
from lmms.prep.video.opened import codec_of, opened
from lmms.prep.video.packets import Walk, walked

_SKIP = ("h264", "hevc")
"""Codecs whose decoders skip a frame by its packet: a quarter less time with two frames of a second."""


def facts(file: BinaryIO, container: Container, limits: VideoLimits) -> VideoFacts:
    """The facts of an open file. Raises Reject."""
    walk = walked(file, container, limits)
    with opened(file, container, limits) as (video, stream):
        decoded = video.decode(stream)
        first = next(decoded, None)
        if first is None:
            raise Reject("no_frames", "the video stream has no frame")
        is_counted = walk.is_sure and limits.check == "packets"
        number = len(walk.stamps) if is_counted else 1 + sum(1 for _ in decoded)
        if walk.is_sure and number < len(walk.stamps):
            raise Reject("decode_error", f"{number} of {len(walk.stamps)} frames can be decoded")
        fps = _rate(float(stream.average_rate or 0), number, walk.seconds)
        height, width, _ = _upright(first, _turn(first)).shape
        return VideoFacts(
            frames=number,
            fps=fps,
            size=(width, height),
            seconds=number / fps,
            container=container.name,
            codec=codec_of(stream),
            has_audio=bool(video.streams.audio),
        )


def codec(file: BinaryIO, container: Container, limits: VideoLimits) -> str:
    """The name of the codec. Raises Reject."""
    with opened(file, container, limits) as (_, stream):
        return codec_of(stream)


def frames(
    file: BinaryIO, container: Container, indices: Sequence[int], limits: VideoLimits
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, frame as shown: (height, width, 3), RGB) of each index; `indices` ascend, without repeats.

    Where packets tell which frame is which, decoding starts at the last key frame before a frame, else at the start.
    """
    walk = walked(file, container, limits)
    if walk.is_sure and indices[-1] >= len(walk.stamps):
        raise Reject("decode_error", f"there is no frame {indices[-1]}: the video has {len(walk.stamps)}")
    turn = None
    for index, frame in _shown(file, container, walk, indices, limits):
        if frame.is_corrupt:
            raise Reject("decode_error", f"frame {index} is damaged")
        # Not of each frame: one that was asked for its side data stays in memory until Python looks for circles.
        turn = turn or _turn(frame)
        yield index, _upright(frame, turn)


def _shown(
    file: BinaryIO, container: Container, walk: Walk, indices: Sequence[int], limits: VideoLimits
) -> Iterator[tuple[int, VideoFrame]]:
    """The frames, by way of key frames where that is sure; what is not found so, by decoding from the start."""
    done = 0
    if walk.is_sure:
        with opened(file, container, limits) as (video, stream):
            for index, frame in _from_keys(video, stream, walk, indices):
                yield index, frame
                done += 1
    if done < len(indices):
        with opened(file, container, limits) as (video, stream):
            yield from _from_start(video.decode(stream), walk, indices[done:])


def _from_keys(
    video: InputContainer, stream: VideoStream, walk: Walk, indices: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The frames by their time stamps, to the first that is not found.

    Decoding goes on where no key frame lies before the next frame, else it starts at the last key frame before it. A
    container may lead too far, and what follows a key frame may need what is before: then at one key frame earlier.
    """
    decoded, last = _decoded(video, stream, walk, indices), walk.stamps[0] - 1
    for index in indices:
        wanted = walk.stamps[index]
        place = bisect_right(walk.keys, wanted) - 1
        frame = _next_at(decoded, wanted) if index == 0 or walk.keys[place] <= last else None
        while frame is None and place >= 0:
            video.seek(walk.places[place], stream=stream)
            decoded = _decoded(video, stream, walk, indices)
            frame = _next_at(decoded, wanted)
            place -= 1
        if frame is None:
            return
        last = wanted
        yield index, frame


def _from_start(decoded: Iterator[VideoFrame], walk: Walk, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """The frames by their time stamps where these are sure, else by their number."""
    number = 0
    for index in indices:
        if walk.is_sure:
            frame = _next_at(decoded, walk.stamps[index])
        else:
            frame = next(islice(decoded, index - number, None), None)
        if frame is None:
            raise Reject("decode_error", f"frame {index} cannot be decoded")
        number = index + 1
        yield index, frame


def _decoded(video: InputContainer, stream: VideoStream, walk: Walk, indices: Sequence[int]) -> Iterator[VideoFrame]:
    """The frames from here on, without most of those that nobody asks for and no other frame depends on."""
    wanted = {walk.stamps[index] for index in indices}
    for packet in video.demux(stream):
        if codec_of(stream) in _SKIP:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        yield from packet.decode()


def _next_at(decoded: Iterator[VideoFrame], wanted: int) -> VideoFrame | None:
    """The frame of that time stamp; None where the frames have passed it."""
    for frame in decoded:
        if frame.pts is not None and frame.pts >= wanted:
            return frame if frame.pts == wanted else None
    return None


def _rate(average: float, number: int, seconds: float) -> float:
    """Frames per second: the average that the container gives, else by the time stamps."""
    if isfinite(average) and average > 0:
        return average
    if seconds > 0:
        return number / seconds
    raise Reject("decode_error", "the file gives neither a frame rate nor a duration")


@dataclass(frozen=True, slots=True)
class _Turn:
    """How stored pixels are shown."""

    swaps_sides: bool
    mirrors_rows: bool
    mirrors_columns: bool


def _turn(frame: VideoFrame) -> _Turn:
    """The turn that the display matrix of a frame asks for, to the nearest quarter; it is that of the whole stream."""
    matrix = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
    # A pixel at column x, row y is shown at column a x + c y, row b x + d y.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, 5).tolist() if matrix else (1, 0, 0, 0, 1)
    swaps = abs(a) + abs(d) < abs(b) + abs(c)
    return _Turn(swaps, mirrors_rows=(b if swaps else d) < 0, mirrors_columns=(c if swaps else a) < 0)


def _upright(frame: VideoFrame, turn: _Turn) -> NDArray[np.uint8]:
    """The pixels as shown, (height, width, 3), RGB."""
    pixels = cast("NDArray[np.uint8]", frame.to_ndarray(format="rgb24", threads=1))
    if turn.swaps_sides:
        pixels = pixels.transpose(1, 0, 2)
    rows, columns = -1 if turn.mirrors_rows else 1, -1 if turn.mirrors_columns else 1
    return np.ascontiguousarray(pixels[::rows, ::columns])
