"""Small sounds for packs: noise as FLAC, and how the tiny models hear."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile

from lmms.configs.contract.media.sounds import Audio
from lmms.configs.contract.pack import Media, Sound

TINY_AUDIO = Audio(sample_rate=16000, mel_bins=8, fft=400, hop=160, longest=32000, chunk=8, is_filled=False)
"""Chunks of 8 frames, 4 positions, 2 tokens: a second is 25 tokens."""
FILLED_AUDIO = Audio(sample_rate=16000, mel_bins=8, fft=400, hop=160, longest=16000, chunk=100, is_filled=True)
"""One chunk for all of a sound of up to a second."""


@dataclass(frozen=True)
class Noise:
    """A sound, and how the model hears that reads it."""

    samples: int
    data: bytes
    audio: Audio

    @property
    def media(self) -> Media:
        """The entry of the sound, at place 0 of the text."""
        tokens, sound = (
            self.audio.tokens(self.samples),
            Sound(self.samples, tuple(self.audio.tower_chunks(self.samples))),
        )
        return Media("audio", 0, tokens, (0, 0), (0, 0, 0), len(self.data), None, sound)


def noise_sound(seed: int, samples: int, audio: Audio) -> Noise:
    """Noise of one channel, 16 bits, that grows louder."""
    noise = np.random.default_rng(seed).uniform(-1, 1, samples) * np.linspace(0.01, 0.5, samples)
    file = io.BytesIO()
    soundfile.write(file, noise, audio.sample_rate, format="FLAC", subtype="PCM_16")
    return Noise(samples, file.getvalue(), audio)
