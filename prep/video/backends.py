"""Which library decodes a file, by the name that a build asks for.

auto is PyAV: it gets every file right that the tests know, at the cost of the others (docs/media.md has the figures).
What a video is, PyAV says for every library; another library that counts other frames does not decode the file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.facts import NEEDS_DECORD, NEEDS_TORCHCODEC, NEEDS_VIDEO, Backend, VideoFacts, VideoLimits

Frames = Iterator[tuple[int, NDArray[np.uint8]]]
"""(index, frame as shown: (height, width, 3), RGB)"""

_JUMP_IN = ("mp4", "matroska")
_JUMPS = {
    "decord": ("h264", "vp8", "vp9", "mjpeg"),
    "torchcodec": ("h264", "hevc", "vp8", "vp9", "av1", "mjpeg", "mpeg4"),
}
"""Codecs in which a library finds a frame by its number, in these containers; in others it may find another frame."""
_ADVICE = {"pyav": NEEDS_VIDEO, "decord": NEEDS_DECORD, "torchcodec": NEEDS_TORCHCODEC}


def facts(file: BinaryIO, container: Container, backend: Backend, limits: VideoLimits) -> VideoFacts:
    """The facts of an open file. Raises Reject, the errors of damaged bytes, and ImportError with what to install."""
    known: VideoFacts = _library("pyav").facts(file, container, limits)
    if backend in ("auto", "pyav"):
        return known
    library = _library(backend)
    number = library.count(file)
    if number != known.frames:
        message = f"{backend} counts {number} frames, {known.frames} can be decoded; take video_backend auto"
        raise Reject("decode_error", message)
    if backend == "torchcodec":
        fps = library.rate(file)
        return replace(known, fps=fps, seconds=known.frames / fps)
    return known


def frames(
    file: BinaryIO, container: Container, indices: Sequence[int], backend: Backend, limits: VideoLimits
) -> Frames:
    """The frame of each index; `indices` ascend, without repeats. Raises as `facts` does."""
    if backend in ("auto", "pyav"):
        yield from _library("pyav").frames(file, container, indices, limits)
        return
    codec = _library("pyav").codec(file, container, limits)
    jumps = container.name in _JUMP_IN and codec in _JUMPS[backend]
    wanted = set(indices)
    asked = indices if jumps else range(max(wanted) + 1)
    for index, frame in _library(backend).frames(file, asked):
        if index in wanted:
            yield index, frame


def _library(name: str) -> Any:
    """The module that calls a library. Imported when used: torchcodec takes seconds, and none needs to be there."""
    try:
        return import_module(f"lmms.prep.video.by_{name}")
    except ModuleNotFoundError:
        raise ImportError(_ADVICE[name]) from None
