"""What a model hears of a sound: frames, positions and tokens; and how a stored sound is read. Prep and train share it.

Samples become frames of a mel spectrogram (WhisperFeatureExtractor of transformers). Two convolutions make a position
of two frames, chunk by chunk; attention stays within a chunk. Behind the blocks two positions make a token.
Sources: transformers 5.23, models/qwen2_audio and models/qwen2_5_omni, processing_*.py and modeling_*.py.

soundfile is imported where it is used: nothing else that reads the contract needs it.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Audio:
    """How a model hears: the settings of its feature extractor, and the chunks of its audio tower."""

    sample_rate: int
    """Samples a second."""
    mel_bins: int
    fft: int
    """Samples of a frame."""
    hop: int
    """Samples from the start of a frame to that of the next."""
    longest: int
    """Samples that the processor takes of a sound; it cuts off the rest."""
    chunk: int
    """Frames that the audio tower reads together."""
    is_filled: bool
    """Whether the frames behind a sound are those of silence; else the tower sees nothing behind a sound."""

    def __post_init__(self) -> None:
        for name in ("sample_rate", "mel_bins", "fft", "hop", "longest", "chunk"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} of sounds is {value!r}, expected a whole number above 0")

    def frames(self, samples: int) -> int:
        """Frames of a sound of so many samples."""
        return -(-samples // self.hop)

    def tokens(self, samples: int) -> int:
        """Tokens of the language model for a sound of so many samples; below 1 for a sound that is too short."""
        return (_positions(self.frames(samples)) - 2) // 2 + 1

    def tower_chunks(self, samples: int) -> list[int]:
        """Positions of each chunk that the audio tower reads for a sound of so many samples.

        Also where sounds are filled: attention is masked to the positions of the sound itself.
        """
        whole, rest = divmod(self.frames(samples), self.chunk)
        return [_positions(self.chunk)] * whole + ([_positions(rest)] if rest else [])


def _positions(frames: int) -> int:
    return (frames - 1) // 2 + 1


def samples_of(data: bytes) -> "NDArray[np.float32]":
    """The samples of FLAC bytes of one channel: (samples,), from -1 to below 1.

    Raises ValueError for other bytes, ImportError with what to install.
    """
    try:
        import soundfile
    except ModuleNotFoundError:
        raise ImportError("sounds need the extra audio: pip install 'lmms[audio]'") from None
    try:
        with soundfile.SoundFile(BytesIO(data)) as file:
            if (file.format, file.channels) != ("FLAC", 1):
                what = f"{file.format} with {file.channels} channels"
                raise ValueError(f"the stored sound is {what}; expected FLAC with one channel")
            number = file.frames
            samples: NDArray[np.float32] = file.read(dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"the stored sound cannot be read: {error.error_string}") from None
    if len(samples) != number:
        raise ValueError(f"the stored sound has {len(samples)} of {number} samples: the bytes are cut off")
    return samples
