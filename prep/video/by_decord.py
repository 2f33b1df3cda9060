"""decord: frames of a file. Its release is of 2021, and what it gets wrong is a reject here, see docs/media.md."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any, BinaryIO

import decord
import numpy as np
from numpy.typing import NDArray

from lmms.prep.reject import Reject

_TOLERANCE = 1e-9
"""Share of frames that may be another frame in place of a damaged one: none. At 0 any may."""

decord.logging.set_level(decord.logging.QUIET)


def count(file: BinaryIO) -> int:
    """Frames of the file, as decord counts them. Raises Reject."""
    with _rejects():
        return len(_reader(file))


def frames(file: BinaryIO, indices: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, frame as shown: (height, width, 3), RGB) of each index; `indices` ascend, without repeats."""
    with _rejects():
        reader = _reader(file)
        for index in indices:
            frame: NDArray[np.uint8] = reader[index].asnumpy()
            if frame.shape[-1] != 3:
                message = f"decord gives pixels of {frame.shape[-1]} bytes for it; expected 3. Take video_backend auto"
                raise Reject("unsupported_format", message)
            yield index, frame


@contextmanager
def _rejects() -> Iterator[None]:
    """Errors of decord as rejects: the last line, without the place in decord's source."""
    try:
        yield
    except (decord.DECORDError, decord.DECORDLimitReachedError, StopIteration) as error:
        text = (str(error).splitlines() or ["there are no more frames"])[0].rpartition("] ")[2]
        raise Reject(
            "decode_error", f"decord cannot decode the video: {text}; perhaps video_backend auto can"
        ) from None


def _reader(file: BinaryIO) -> Any:
    """The file by its handle, so that no name can be taken for an address; or from memory."""
    source = file if isinstance(file, BytesIO) else f"/proc/self/fd/{file.fileno()}"
    file.seek(0)
    return decord.VideoReader(source, num_threads=1, fault_tol=_TOLERANCE)
