"""Sounds for a build: what a file is, and its samples as FLAC. Nothing of a file reaches a decoder in this process.

The process that decodes videos decodes sounds, too: see prep/video/process.py.
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from lmms.prep.audio.facts import Clip, SoundFacts, SoundFormat
from lmms.prep.video.facts import VideoFile, VideoLimits
from lmms.prep.video.process import Question, answers


def probe_sound(data: VideoFile, limits: VideoLimits) -> SoundFacts:
    """What the first sound of a file is, by a full decode. Raises Reject; BuildError where a library is missing."""
    ((_, text),) = answers(data, _question(limits))
    return SoundFacts(**json.loads(text))


def encoded_sound(
    data: VideoFile,
    sample_rate: int,
    form: SoundFormat,
    limits: VideoLimits,
    start: float | None = None,
    end: float | None = None,
    most: int | None = None,
) -> tuple[bytes, int]:
    """The first sound of a file as one channel of so many samples a second: FLAC, and the number of samples.

    start, end: of a clip, in seconds of the file. most: samples of the result; the rest is left out. Samples above 1
    are cut to 1. The same samples give the same bytes, whatever the file. Raises Reject, also for a clip without
    samples; BuildError where a library is missing.
    """
    if (start is not None and not start >= 0) or (end is not None and not end >= 0):
        raise ValueError(f"a clip from {start} to {end} s: times count from 0")
    question = _question(limits, sample_rate=sample_rate, form=asdict(form), clip=asdict(Clip(start, end)), most=most)
    ((number, flac),) = answers(data, question)
    return flac, number


def sound_decoder() -> str:
    """Names and versions of the libraries that decode and resample; empty where one is not installed."""
    packages = ("av", "soxr")
    return ", ".join(f"{name} {version(name)}" for name in packages) if all(map(find_spec, packages)) else ""


def _question(limits: VideoLimits, **details: Any) -> Question:
    return Question("sound", "lmms.prep.audio.answer", limits, {"sample_rate": None, **details})
