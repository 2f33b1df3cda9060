"""What the process that decodes answers about a video: its facts, or pictures."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from lmms.prep.reject import Reject
from lmms.prep.video import backends
from lmms.prep.video.container import Container, container_of
from lmms.prep.video.encode import encoded
from lmms.prep.video.facts import FrameFormat, VideoLimits
from lmms.prep.video.resize import resized
from lmms.prep.video.whole import check_whole


def results(file: BinaryIO, details: dict[str, Any], limits: VideoLimits) -> Iterator[tuple[int, bytes]]:
    """(0, facts as JSON), or (index, picture) of each index that the details ask for. Raises as `backends` does."""
    container = container_of(file)
    check_whole(file, container)
    if details["indices"] is None:
        facts = backends.facts(file, container, details["backend"], limits)
        yield 0, json.dumps(asdict(facts)).encode()
    else:
        yield from _pictures(file, container, details, limits)


def _pictures(
    file: BinaryIO, container: Container, details: dict[str, Any], limits: VideoLimits
) -> Iterator[tuple[int, bytes]]:
    form, size, shape = FrameFormat(**details["form"]), details["size"], None
    indices = sorted(set(details["indices"]))
    for index, frame in backends.frames(file, container, indices, details["backend"], limits):
        shape = shape or frame.shape
        if frame.shape != shape:
            message = f"frame {index} has {frame.shape[1]} x {frame.shape[0]} pixels, frames before it another size"
            raise Reject("decode_error", message)
        yield index, encoded(resized(frame, *size) if size else frame, form)
