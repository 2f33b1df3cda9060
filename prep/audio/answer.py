"""What the process that decodes answers about a sound: its facts, or its samples as FLAC."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from lmms.prep.audio.container import sound_container
from lmms.prep.audio.facts import NEEDS_AUDIO, Clip, SoundFacts, SoundFormat
from lmms.prep.audio.whole import check_whole_sound
from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.facts import VideoLimits

try:
    from lmms.prep.audio.encode import flac, mono, resampled, up_to
    from lmms.prep.audio.samples import sound_of
except ModuleNotFoundError as error:
    if error.name and error.name.startswith("lmms"):
        raise
    raise ImportError(NEEDS_AUDIO) from None


def results(file: BinaryIO, details: dict[str, Any], limits: VideoLimits) -> Iterator[tuple[int, bytes]]:
    """(0, facts as JSON), or (number of samples, FLAC) where the details have a sample rate. Raises Reject."""
    container = sound_container(file)
    check_whole_sound(file, container)
    if details["sample_rate"] is None:
        yield 0, json.dumps(asdict(_facts(file, container, limits))).encode()
        return
    data, number = _encoded(file, container, details, limits)
    yield number, data


def _facts(file: BinaryIO, container: Container, limits: VideoLimits) -> SoundFacts:
    with sound_of(file, container, limits) as sound:
        number = sum(len(block) for block in sound.blocks)
        rate = sound.sample_rate
        return SoundFacts(number, rate, sound.channels, number / rate, container.name, sound.codec)


def _encoded(file: BinaryIO, container: Container, details: dict[str, Any], limits: VideoLimits) -> tuple[bytes, int]:
    clip, form, sample_rate = Clip(**details["clip"]), SoundFormat(**details["form"]), details["sample_rate"]
    with sound_of(file, container, limits) as sound:
        first, length = clip.samples(sound.sample_rate)
        blocks = resampled(sound, mono(sound.blocks, first, length), sample_rate)
        data, number = flac(up_to(blocks, details["most"]), sample_rate, form)
    if number == 0:
        end = "the end" if clip.end is None else f"{clip.end:g} s"
        raise Reject("bad_range", f"there are no samples from {clip.start or 0:g} s to {end}")
    return data, number
