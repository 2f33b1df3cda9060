"""torchcodec: frames of a file. It loads torch and the FFmpeg of the system, in the process that decodes only."""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmms.prep.video.facts import NEEDS_TORCHCODEC


def count(file: BinaryIO) -> int:
    """Frames of the file, as torchcodec counts them."""
    return len(_decoder(file))


def rate(file: BinaryIO) -> float:
    """Average frames per second: frames by the time from the first to the end of the last."""
    return float(_decoder(file).metadata.average_fps)


def frames(file: BinaryIO, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, frame as shown: (height, width, 3), RGB) of each index; `indices` ascend, without repeats."""
    decoder = _decoder(file)
    for index in indices:
        yield index, decoder.get_frame_at(index).data.numpy()


def _decoder(file: BinaryIO) -> Any:
    file.seek(0)
    try:
        # Here and not above: to import this module loads no torch.
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        raise ImportError(NEEDS_TORCHCODEC) from None
    try:
        # exact: the packets are counted. The threads are one: prep has a process for each core.
        return VideoDecoder(file, dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    except RuntimeError as error:
        if "libtorchcodec" in str(error):
            raise ImportError(NEEDS_TORCHCODEC) from None
        raise
