"""Blocks of samples -> one channel at another rate, as FLAC.

The samples are those of librosa.load(sr=..., mono=True): the mean of the channels first, then the resampler soxr at its
quality HQ, and a number of samples that is rounded up. FLAC holds whole numbers: what is above 1 is cut to 1.
"""

import math
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from lmms.prep.audio.facts import SoundFormat
from lmms.prep.audio.samples import Samples, Sound
from lmms.prep.reject import Reject


def mono(blocks: Iterator[Samples], first: int, number: int | None) -> Iterator[Samples]:
    """(samples,): the mean of the channels, from sample `first` on, to the end or so many."""
    at, end = 0, math.inf if number is None else first + number
    for block in blocks:
        part = block[max(first - at, 0) : int(min(max(end - at, 0), len(block)))]
        at += len(block)
        if len(part):
            yield part[:, 0] if part.shape[1] == 1 else part.mean(axis=1, dtype=np.float32)
        if at >= end:
            return


def resampled(sound: Sound, blocks: Iterator[Samples], sample_rate: int) -> Iterator[Samples]:
    """(samples,) at another rate; the last block may be longer by a zero, since the number is rounded up."""
    if sound.sample_rate == sample_rate:
        yield from blocks
        return
    stream = soxr.ResampleStream(sound.sample_rate, sample_rate, 1, dtype="float32", quality="HQ")
    before, after = 0, 0
    for block in blocks:
        result = stream.resample_chunk(np.ascontiguousarray(block))
        before, after = before + len(block), after + len(result)
        yield result
    last = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    # In this form, as the rounding of librosa depends on it.
    wanted = math.ceil(before * (float(sample_rate) / sound.sample_rate)) - after
    yield np.pad(last, (0, max(wanted - len(last), 0)))[:wanted]


def up_to(blocks: Iterator[Samples], most: int | None) -> Iterator[Samples]:
    """(samples,): the first of these samples, so many; None: all. All are taken: at the end their number is checked."""
    number = 0
    for block in blocks:
        yield block if most is None else block[: max(most - number, 0)]
        number += len(block)


def flac(blocks: Iterator[Samples], sample_rate: int, form: SoundFormat) -> tuple[bytes, int]:
    """FLAC of one channel, and its number of samples. Raises Reject for samples too large to calculate with."""
    target, number = BytesIO(), 0
    with soundfile.SoundFile(target, "w", sample_rate, 1, f"PCM_{form.bits}", format="FLAC") as writer:
        for block in blocks:
            if not np.isfinite(block).all():
                message = "samples are too large to calculate with; expected -1 to 1: scale the sound"
                raise Reject("non_finite_samples", message)
            writer.write(_whole_numbers(block, form.bits))
            number += len(block)
    return target.getvalue(), number


def _whole_numbers(block: Samples, bits: int) -> NDArray[np.int16 | np.int32]:
    """Rounded here: soundfile writes by another factor than it reads by. So samples of so many bits stay the same."""
    top = 2.0 ** (bits - 1)
    values = np.clip(np.rint(block.astype(np.float64) * top), -top, top - 1)
    return values.astype(np.int16) if bits == 16 else values.astype(np.int32) << 8
