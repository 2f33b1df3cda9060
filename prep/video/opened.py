"""A file that libav has open, with every way closed by which it could open another."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NoReturn, cast

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.facts import VideoLimits

_READ = 2**20
"""Bytes that are read at a time."""


@contextmanager
def opened(file: BinaryIO, container: Container, limits: VideoLimits) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file at its start, and its first video stream that is no cover picture."""
    with opened_file(file, container, limits, "video") as video:
        streams = [each for each in video.streams.video if not each.disposition & Disposition.attached_pic]
        if not streams:
            raise Reject("no_video_stream", f"the {container.name} file has no video stream")
        context = cast("VideoCodecContext | None", streams[0].codec_context)
        if context is None:
            advice = "convert it to H.264, for example with ffmpeg"
            raise Reject("unsupported_format", f"the codec of the video is not known here; {advice}")
        if context.width * context.height > limits.max_pixels:
            message = f"a frame has {context.width} x {context.height} pixels, more than {limits.max_pixels}"
            raise Reject("too_many_pixels", f"{message}; raise max_image_pixels to accept it")
        context.options = {"max_pixels": str(limits.max_pixels)}
        # Prep has a process for each core; and with a single thread the fewest frames are in memory.
        context.thread_count = 1
        yield video, streams[0]


@contextmanager
def opened_file(file: BinaryIO, container: Container, limits: VideoLimits, kind: str) -> Iterator[InputContainer]:
    """The file at its start. Raises Reject also for errors of libav in what the caller does; kind: for the message."""
    file.seek(0)
    # All by which libav could open another file or address is closed: protocols, references, and its way to open.
    options = {"protocol_whitelist": "none", "max_pixels": str(limits.max_pixels)}
    if container.name == "mp4":
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    with (
        _rejects(kind),
        av.open(
            file, "r", format=container.demuxer, options=options, buffer_size=_READ, io_open=_refuse_to_open
        ) as opened_container,
    ):
        yield opened_container


def codec_of(stream: VideoStream) -> str:
    """The name of the codec, such as h264, whichever library decodes it."""
    return stream.codec_context.codec.canonical_name


@contextmanager
def _rejects(kind: str) -> Iterator[None]:
    """Errors of libav as rejects."""
    try:
        yield
    except MemoryError:  # also libav's
        raise
    except av.error.DecoderNotFoundError as error:
        raise Reject("unsupported_format", f"the {kind} cannot be decoded here: {error.strerror}") from None
    except av.FFmpegError as error:
        raise Reject("decode_error", f"the {kind} cannot be decoded: {error.strerror}") from None


def _refuse_to_open(url: str, flags: int, options: object) -> NoReturn:
    raise PermissionError(f"it asks for another file: {url!r}")
