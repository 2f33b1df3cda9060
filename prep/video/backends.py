"""Which library decodes a file, by the name that a build asks for."""

from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmms.prep.video import by_pyav
from lmms.prep.video.container import Container
from lmms.prep.video.facts import Backend, VideoFacts, VideoLimits


def facts(file: BinaryIO, container: Container, backend: Backend, limits: VideoLimits) -> VideoFacts:
    """The facts of an open file. Raises Reject, and the errors of damaged bytes."""
    return by_pyav.facts(file, container, limits)


def frames(
    file: BinaryIO, container: Container, indices: Sequence[int], backend: Backend, limits: VideoLimits
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(index, frame as shown: (height, width, 3), RGB) of each index; `indices` ascend, without repeats."""
    return by_pyav.frames(file, container, indices, limits)
