"""PyAV: facts and frames of a file, with every packet counted and every frame known by its time stamp."""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from math import isfinite
from typing import BinaryIO, NoReturn, cast

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.facts import VideoFacts, VideoLimits

_STAMPED = ("mp4", "matroska", "flv", "mpegts")
"""Containers with a time stamp for each packet; files of others are decoded to count their frames."""
_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "mjpeg", "ffv1", "prores", "png")
"""Codecs of one shown frame for each packet; others are decoded to count."""
_LOOK = 4
"""Frames that are decoded to see that they are those of the first packets."""
_READ = 2**20


@dataclass(frozen=True, slots=True)
class Walk:
    """The packets of the video stream."""

    stamps: "array[int]"
    """Presentation times in the time base of the stream, sorted. Empty: not all packets have one."""
    keys: "array[int]"
    """Presentation times of the packets at which decoding may start, sorted."""
    is_sure: bool
    """Whether frame number i is the one of stamps[i], in a stream without damage."""
    seconds: float
    """From the first time stamp to the end of the last packet; 0: not known."""


def facts(file: BinaryIO, container: Container, limits: VideoLimits) -> VideoFacts:
    """The facts of an open file. Raises Reject."""
    walk = _walk(file, container, limits)
    with _opened(file, container, limits) as (video, stream):
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
            codec=stream.codec_context.codec.canonical_name,
            has_audio=bool(video.streams.audio),
        )


def frames(
    file: BinaryIO, container: Container, indices: Sequence[int], limits: VideoLimits
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, frame as shown: (height, width, 3), RGB) of each index; `indices` ascend, without repeats.

    Where packets tell which frame is which, decoding starts at the last key frame before a frame, else at the start.
    """
    walk = _walk(file, container, limits)
    with _opened(file, container, limits) as (video, stream):
        shown = _from_keys(video, stream, walk, indices) if walk.is_sure else _in_order(video, stream, indices)
        turn = None
        for index, frame in shown:
            if frame.is_corrupt:
                raise Reject("decode_error", f"frame {index} is damaged")
            # Not of each frame: one that was asked for its side data stays in memory until Python looks for circles.
            turn = turn or _turn(frame)
            yield index, _upright(frame, turn)


def _walk(file: BinaryIO, container: Container, limits: VideoLimits) -> Walk:
    """The packets, to the end of the file; and whether the first frames are those of the first packets."""
    stamps, keys, end = array("q"), array("q"), 0
    has_all = container.name in _STAMPED
    with _opened(file, container, limits) as (video, stream):
        has_all &= stream.codec_context.codec.canonical_name in _FRAME_A_PACKET
        for packet in video.demux(stream):
            if packet.size == 0:  # the last, which asks a decoder for what it has left
                continue
            if packet.is_corrupt:
                raise Reject("decode_error", f"the file is cut off or damaged at packet {len(stamps)} of its video")
            if packet.pts is None:
                has_all = False
                continue
            has_all &= not packet.is_discard and (packet.is_keyframe or bool(keys))
            stamps.append(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe:
                keys.append(packet.pts)
        seconds = float((end - min(stamps)) * (stream.time_base or 0)) if stamps else 0.0
    stamps, keys = array("q", sorted(stamps)), array("q", sorted(keys))
    has_all &= bool(stamps) and all(earlier < later for earlier, later in pairwise(stamps))
    return Walk(stamps, keys, has_all and _is_first(file, container, limits, stamps), seconds)


def _is_first(file: BinaryIO, container: Container, limits: VideoLimits, stamps: Sequence[int]) -> bool:
    """Whether the first frames have the first time stamps: fields of a frame, and frames to skip, may not."""
    with _opened(file, container, limits) as (video, stream):
        return [frame.pts for frame in islice(video.decode(stream), _LOOK)] == list(stamps[:_LOOK])


def _from_keys(
    video: InputContainer, stream: VideoStream, walk: Walk, indices: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The frames by their time stamps. Decoding goes on where no key frame lies before the next frame, else seeks."""
    decoded, last = video.decode(stream), walk.stamps[0] - 1
    for index in indices:
        if index >= len(walk.stamps):
            raise Reject("decode_error", f"there is no frame {index}: the video has {len(walk.stamps)}")
        wanted = walk.stamps[index]
        place = bisect_right(walk.keys, wanted) - 1
        frame = _next_at(decoded, wanted) if walk.keys[place] <= last or index == 0 else None
        while frame is None and place >= 0:
            # A container may seek too far, and what follows a key frame may need what is before: then one key earlier.
            video.seek(walk.keys[place], stream=stream)
            decoded = video.decode(stream)
            frame = _next_at(decoded, wanted)
            place -= 1
        if frame is None:
            raise Reject("decode_error", f"frame {index} cannot be decoded")
        last = wanted
        yield index, frame


def _next_at(decoded: Iterator[VideoFrame], wanted: int) -> VideoFrame | None:
    """The frame of that time stamp; None where the frames have passed it."""
    for frame in decoded:
        if frame.pts is not None and frame.pts >= wanted:
            return frame if frame.pts == wanted else None
    return None


def _in_order(video: InputContainer, stream: VideoStream, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
    """The frames by their number, decoded from the start."""
    decoded, number = video.decode(stream), 0
    for index in indices:
        frame = next(islice(decoded, index - number, None), None)
        if frame is None:
            raise Reject("decode_error", f"frame {index} cannot be decoded")
        number = index + 1
        yield index, frame


@contextmanager
def _opened(file: BinaryIO, container: Container, limits: VideoLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file at its start, and its first video stream that is no cover picture."""
    file.seek(0)
    # All by which libav could open another file or address is closed: protocols, references, and its way to open.
    options = {"protocol_whitelist": "none", "max_pixels": str(limits.max_pixels)}
    if container.name == "mp4":
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    with (
        _rejects(),
        av.open(
            file, "r", format=container.demuxer, options=options, buffer_size=_READ, io_open=_refuse_to_open
        ) as video,
    ):
        streams = [each for each in video.streams.video if not each.disposition & Disposition.attached_pic]
        if not streams:
            raise Reject("no_video_stream", f"the {container.name} file has no video stream")
        context = streams[0].codec_context
        if context.width * context.height > limits.max_pixels:
            message = f"a frame has {context.width} x {context.height} pixels, more than {limits.max_pixels}"
            raise Reject("too_many_pixels", f"{message}; raise max_image_pixels to accept it")
        context.options = {"max_pixels": str(limits.max_pixels)}
        # Prep has a process for each core; and with a single thread the fewest frames are in memory.
        context.thread_count = 1
        yield video, streams[0]


@contextmanager
def _rejects() -> Iterator[None]:
    """Errors of libav as rejects."""
    try:
        yield
    except MemoryError:  # also libav's
        raise
    except av.error.DecoderNotFoundError as error:
        raise Reject("unsupported_format", f"the video cannot be decoded here: {error.strerror}") from None
    except av.FFmpegError as error:
        raise Reject("decode_error", f"the video cannot be decoded: {error.strerror}") from None


def _refuse_to_open(url: str, flags: int, options: object) -> NoReturn:
    raise PermissionError(f"the video asks for another file: {url!r}")


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
    """By the display matrix of a frame, which is that of the whole stream; angles count as the nearest quarter turn."""
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
