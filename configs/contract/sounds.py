"""How a stored sound is read: the same in prep and in train.

soundfile is imported where it is used: nothing else that reads the contract needs it.
"""

from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
