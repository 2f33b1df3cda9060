"""Small videos of known frames: the number of a frame is written into its pixels, and is read back out of them."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 64, 48
BITS = 8
"""Bars across a frame, bright for a 1: they survive every codec and every way to store colours."""


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """(height, width, 3): frame number `number`, up to 255."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    bars = np.repeat(np.array(bits, np.uint8) * 180 + 40, -(-width // BITS))[:width]
    return np.ascontiguousarray(np.broadcast_to(bars[None, :, None], (height, width, 3)))


def number_of(frame: NDArray[np.uint8]) -> int:
    """The number in a frame of the width that was stored, or of any other width."""
    bars = np.array_split(frame.mean(axis=(0, 2)), BITS)
    return sum(int(bar[len(bar) // 4 : -(len(bar) // 4)].mean() > 128) << bit for bit, bar in enumerate(bars))


def video(
    frames: int,
    container: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A file of numbered frames at 25 a second. times: of each frame, in units of 1/100 s, for a variable rate."""
    target = BytesIO()
    with av.open(target, "w", format=container, options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = pixels
        step = Fraction(1, 100) if times else Fraction(1, 25)
        stream.codec_context.time_base = step
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number % 256, *size), format="rgb24")
            frame.pts = times[number] if times else number
            frame.time_base = step
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return target.getvalue()


def of_frames(frames: Sequence[NDArray[np.uint8]], rate: int) -> bytes:
    """An MP4 of these frames, (height, width, 3), at so many a second."""
    target = BytesIO()
    with av.open(target, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv444p"
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return target.getvalue()


def again(data: bytes, times: int) -> bytes:
    """An MP4 whose packets are written that many times, one after another: long, and made in a moment."""
    target = BytesIO()
    with av.open(target, "w", format="mp4") as output:
        end = 0
        for turn in range(times):
            with av.open(BytesIO(data)) as source:
                stream = source.streams.video[0]
                if turn == 0:
                    into = output.add_stream_from_template(stream)
                shift = end
                for packet in source.demux(stream):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, shift + packet.pts + (packet.duration or 0))
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = into
                    output.mux(packet)
    return target.getvalue()


def with_reference(data: bytes, path: str) -> bytes:
    """An MP4 whose video says that its samples are in another file: an alias record in place of "in this file"."""
    here = data.index(b"dref") + 12  # the table's version and number of entries; then the entry of 12 bytes
    assert data[here : here + 8] == b"\x00\x00\x00\x0curl "
    name = path.encode()
    place = b"\x00\x02" + len(name).to_bytes(2) + name + bytes(len(name) % 2) + b"\xff\xff\x00\x00"
    alias = bytes(10) + b"\x04disk" + bytes(23) + bytes(12) + bytes([4]) + b"file" + bytes(59) + bytes(16)
    alias += bytes(4) + bytes(16) + place
    entry = (12 + len(alias)).to_bytes(4) + b"alis" + bytes(4) + alias
    result = bytearray(data[:here] + entry + data[here + 12 :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = result.index(box) - 4
        result[at : at + 4] = (int.from_bytes(result[at : at + 4]) + len(entry) - 12).to_bytes(4)
    return bytes(result)
