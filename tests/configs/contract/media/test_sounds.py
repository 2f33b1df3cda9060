"""Stored sounds: samples come back, and other bytes are an error with words."""

import numpy as np
import pytest

from lmms.configs.contract.media.sounds import samples_of
from tests.kit.media.sounds import pcm, tone


def test_samples_come_back() -> None:
    samples = samples_of(pcm(tone(100), "PCM_16", "FLAC"))
    assert (samples.dtype, samples.shape) == (np.float32, (100,))
    assert np.abs(samples - tone(100)[:, 0]).max() <= 2.0**-15


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no sound", "cannot be read"),
        (pcm(tone(10), "PCM_16"), "WAV with 1 channels; expected FLAC"),
        (pcm(tone(10, channels=2), "PCM_16", "FLAC"), "FLAC with 2 channels; expected FLAC with one channel"),
        (pcm(tone(20000), "PCM_16", "FLAC")[:9000], r"of 20000 samples|cannot be read"),
    ],
)
def test_other_bytes_are_an_error(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        samples_of(data)
