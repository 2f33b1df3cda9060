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
