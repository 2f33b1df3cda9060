"""Videos for a build: what a file is, and its frames as pictures. Nothing of a file reaches a decoder in this process.

A process beside the one that asks decodes all its files. A file that ends that process, or takes too long or too much
memory, is a reject, and the next file gets a new process.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec

from lmms.prep.video.facts import Backend, FrameFormat, VideoFacts, VideoFile, VideoLimits
from lmms.prep.video.process import Question, answers


def probe(data: VideoFile, backend: Backend, limits: VideoLimits) -> VideoFacts:
    """What a video is. Raises Reject; BuildError where the library is not installed."""
    ((_, text),) = answers(data, _question(backend, limits))
    facts = json.loads(text)
    return VideoFacts(**facts | {"size": tuple(facts["size"])})


def encoded_frames(
    data: VideoFile,
    indices: Sequence[int],
    size: tuple[int, int] | None,
    form: FrameFormat,
    backend: Backend,
    limits: VideoLimits,
) -> list[bytes]:
    """A picture for each index, in the order of `indices`, which may repeat: frame numbers from 0, as shown.

    size: (width, height) in pixels to resize to, as the processors do; None: as decoded. Raises Reject, also where the
    video has no such frame; BuildError where the library is not installed.
    """
    if not indices:
        return []
    if min(indices) < 0:
        raise ValueError(f"there is no frame {min(indices)}: frames count from 0")
    pictures = dict(answers(data, _question(backend, limits, list(map(int, indices)), size, form)))
    return [pictures[index] for index in indices]


def _question(
    backend: Backend,
    limits: VideoLimits,
    indices: Sequence[int] | None = None,
    size: tuple[int, int] | None = None,
    form: FrameFormat | None = None,
) -> Question:
    details = {"backend": backend, "indices": indices, "size": size, "form": asdict(form) if form else None}
    return Question("video", "lmms.prep.video.answer", limits, details)


def decoder_of(backend: Backend) -> str:
    """Name and version of the library that decodes, such as av 18.1.0; empty where it is not installed."""
    package = _PACKAGES.get(backend, "av")
    return f"{package} {version(package)}" if find_spec(package) else ""


_PACKAGES = {"decord": "decord", "torchcodec": "torchcodec"}
