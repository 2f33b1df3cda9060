"""What a sound is, and how a sound is stored."""

from dataclasses import dataclass
from typing import Literal

NEEDS_AUDIO = "sounds need the extra audio: pip install 'lmms[audio]'"
"""What to do where a library is not installed."""


@dataclass(frozen=True, slots=True)
class SoundFacts:
    """A sound as a full decode gives it, not as its header states."""

    samples: int
    """Samples of each channel, at least 1."""
    sample_rate: int
    """Samples a second."""
    channels: int
    seconds: float
    """samples / sample_rate."""
    container: str
    """wav, flac, mp3, aac, aiff, or the name of a container of videos, such as ogg, mp4 or matroska."""
    codec: str
    """The decoder's name, such as vorbis."""


@dataclass(frozen=True, slots=True)
class SoundFormat:
    """How the samples of a sound are stored: as FLAC, in whole numbers of so many bits."""

    bits: Literal[16, 24] = 16


@dataclass(frozen=True, slots=True)
class Clip:
    """The part of a sound between two times in seconds; None: from its start, to its end."""

    start: float | None = None
    end: float | None = None

    def samples(self, sample_rate: int) -> tuple[int, int | None]:
        """(first sample, number of samples; None: all), rounded down as librosa.load rounds offset and duration."""
        start = self.start or 0.0
        number = None if self.end is None else int((self.end - start) * sample_rate)
        return int(start * sample_rate), number
