"""Samples of a sound -> the frames that enter an audio tower, as WhisperFeatureExtractor makes them.

The extractor fills a sound up with zeros to the longest that a model takes. Here zeros are added as far as the frames
that can hold anything of the sound: those behind are of silence, and no tower looks further.

Source: transformers 5.23, models/whisper/feature_extraction_whisper.py.
"""

from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from lmms.configs.contract.media.sounds import Audio, samples_of
from lmms.configs.contract.pack import Sound
from lmms.configs.errors import TrainError
from lmms.train.batch.images import BadMediaError

_BEHIND = 2
"""Frames behind a sound that hold some of its samples, or that a convolution sees from the last position."""
_LOWEST_HZ, _HIGHEST_HZ = 0.0, 8000.0
"""Bounds of the filters, the same for every extractor."""
_LEAST, _RANGE = 1e-10, 8.0
"""The least power, and how far below the loudest frame of a sound its values may lie, in powers of ten."""


def sound_frames(data: bytes, sound: Sound, audio: Audio) -> npt.NDArray[np.float32]:
    """float32 [mel bins, frames] of a stored sound; with the frames behind it where the tower sees silence there.

    Raises BadMediaError when the bytes cannot be decoded or have another number of samples than `sound` states,
    TrainError where the extra is missing that decodes sounds.
    """
    try:
        samples = samples_of(data)
    except ValueError as error:
        raise BadMediaError(str(error)) from error
    except ImportError as error:
        raise TrainError(f"the shards hold sounds: {error}") from error
    if len(samples) != sound.samples:
        raise BadMediaError(f"the sound has {len(samples):,} samples, the shard states {sound.samples:,}")
    return mel_frames(samples, audio)


def mel_frames(samples: npt.NDArray[np.float32], audio: Audio) -> npt.NDArray[np.float32]:
    """float32 [mel bins, frames] of samples [n], n at most audio.longest: the extractor's `input_features`.

    frames: audio.frames(n); where sounds are filled up, as many more as the tower sees of the silence.
    """
    frames = audio.frames(len(samples))
    most = audio.longest // audio.hop
    computed = min(frames + _BEHIND, most)
    # Behind the zeros the transform mirrors samples; in frames that are kept only where the extractor does so.
    filled = min((frames + _BEHIND) * audio.hop + audio.fft, audio.longest)
    wave = torch.zeros(filled)
    wave[: len(samples)] = torch.from_numpy(samples)
    spectrum = torch.stft(wave, audio.fft, audio.hop, window=torch.hann_window(audio.fft), return_complex=True)
    power = _filters(audio) @ (spectrum[:, :computed].abs() ** 2).contiguous()
    decades = power.clamp(min=_LEAST).log10()
    values = (torch.maximum(decades, decades.max() - _RANGE) + 4.0) / 4.0
    return values[:, : computed if audio.is_filled else frames].numpy()


@cache
def _filters(audio: Audio) -> Tensor:
    """float32 [mel bins, fft // 2 + 1]"""
    filters = mel_filter_bank(
        num_frequency_bins=1 + audio.fft // 2,
        num_mel_filters=audio.mel_bins,
        min_frequency=_LOWEST_HZ,
        max_frequency=_HIGHEST_HZ,
        sampling_rate=audio.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float().T
