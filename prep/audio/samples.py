"""PyAV: the samples of a file, block by block, so that the memory does not grow with the length of a sound."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from lmms.prep.audio.whole import promised_samples
from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.facts import VideoLimits
from lmms.prep.video.opened import opened_file

Samples = NDArray[np.float32]
_BLOCK = 2**16
"""Samples of each channel that are handed on together: a frame of a codec has a thousand."""


@dataclass(frozen=True, slots=True)
class Sound:
    """An open sound."""

    sample_rate: int
    channels: int
    codec: str
    blocks: Iterator[Samples]
    """(samples, channels), within -1 to 1 unless the file has larger ones; to be read to the end: at the end the
    number of samples is checked. Raises Reject."""


@contextmanager
def sound_of(file: BinaryIO, container: Container, limits: VideoLimits) -> Iterator[Sound]:
    """The first sound of a file. Raises Reject."""
    promised = promised_samples(file, container)
    with opened_file(file, container, limits, "sound") as opened:
        if not opened.streams.audio:
            raise Reject("no_audio_stream", f"the {container.name} file has no sound")
        stream = opened.streams.audio[0]
        if stream.codec_context is None:
            raise Reject("unsupported_format", "the codec of the sound is not known here; convert it to FLAC")
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {"err_detect": "crccheck"}
        frames = _alike(opened, stream)
        first = next(frames, None)
        if first is None:
            raise Reject("empty_audio", "the sound has 0 samples")
        codec = stream.codec_context.codec.canonical_name
        blocks = _checked(_blocks(first, frames), promised)
        yield Sound(first.sample_rate, first.layout.nb_channels, codec, blocks)


def _alike(opened: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """The frames that have samples. Raises Reject where rate or channels change on the way."""
    form = None
    for frame in opened.decode(stream):
        if not frame.samples:
            continue
        now = frame.sample_rate, frame.layout.nb_channels
        form = form or now
        if now != form:
            words = "after {} samples a second in {} channels come {} in {}; expected the same to the end"
            raise Reject("decode_error", words.format(*form, *now))
        yield frame


def _blocks(first: AudioFrame, others: Iterator[AudioFrame]) -> Iterator[Samples]:
    parts, number = [_samples(first)], first.samples
    for frame in others:
        if number >= _BLOCK:
            yield np.concatenate(parts)
            parts, number = [], 0
        parts.append(_samples(frame))
        number += frame.samples
    yield np.concatenate(parts)


def _checked(blocks: Iterator[Samples], promised: int) -> Iterator[Samples]:
    number = 0
    for block in blocks:
        if not np.isfinite(block).all():
            place = number + int(np.argmin(np.isfinite(block).all(1)))
            raise Reject("non_finite_samples", f"sample {place} is NaN or infinite")
        number += len(block)
        yield block
    if number < promised:
        raise Reject("decode_error", f"{number} of {promised} samples can be decoded: the file is cut off")


def _samples(frame: AudioFrame) -> Samples:
    """(samples, channels), as fractions of the largest number that the format of the frame holds."""
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - np.float32(128)) / np.float32(128)
    if values.dtype.kind == "i":
        return values.astype(np.float32) / np.float32(2.0 ** (8 * values.dtype.itemsize - 1))
    with np.errstate(over="ignore"):  # a number beyond 32 bits becomes infinite, which is a reject
        return values.astype(np.float32)
