"""Small sounds of known samples, in every container that is read."""

from io import BytesIO
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

RATE = 16000


def tone(samples: int, channels: int = 1, rate: int = RATE) -> NDArray[np.float32]:
    """(samples, channels): a tone that rises, another in each channel, up to half of the largest value."""
    time = np.arange(samples)[:, None] / rate
    return (0.5 * np.sin(2 * np.pi * (200 + 100 * np.arange(channels)) * time * (1 + time))).astype(np.float32)


def pcm(samples: NDArray[Any], subtype: str, container: str = "WAV", rate: int = RATE) -> bytes:
    """A file of soundfile: WAV, AIFF, FLAC, RF64, ... with PCM_16, FLOAT, ULAW, ..."""
    target = BytesIO()
    soundfile.write(target, samples, rate, subtype=subtype, format=container)
    return target.getvalue()


def coded(samples: NDArray[np.float32], container: str, codec: str, rate: int = RATE, **options: Any) -> bytes:
    """A file of libav. samples: (samples, 1 or 2)."""
    target = BytesIO()
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    with av.open(target, "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), format="fltp", layout=layout)
        frame.sample_rate = rate
        fitting = av.AudioResampler(
            format=stream.codec_context.codec.audio_formats[0], layout=layout, rate=rate, frame_size=stream.frame_size
        )
        for part in (*fitting.resample(frame), *fitting.resample(None)):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return target.getvalue()
