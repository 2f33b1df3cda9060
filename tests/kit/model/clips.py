"""Small videos for packs: frames of noise as PNG files, two in a row."""

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from lmms.configs.contract.media.geometry import Vision, grid_tokens
from lmms.configs.contract.media.video import rows_of
from lmms.configs.contract.pack import Media, Row


@dataclass(frozen=True)
class Clip:
    """A video of frames of one size, which is a multiple of the patches to merge."""

    frames: tuple[bytes, ...]
    step: float = 1.0
    has_times: bool = False
    """Whether text stands before each row."""


def noise_clip(seed: int, frames: int, width: int, height: int, step: float = 1.0, has_times: bool = False) -> Clip:
    """A video of noise."""
    rng = np.random.default_rng(seed)
    return Clip(tuple(_frame(rng, width, height) for _ in range(frames)), step, has_times)


def clip_rows(clip: Clip, vision: Vision) -> Iterator[tuple[Media, bytes]]:
    """Each row of a video, at place 0 of the text, with its bytes."""
    width, height = Image.open(io.BytesIO(clip.frames[0])).size
    grid = (1, height // vision.patch_size, width // vision.patch_size)
    rows = rows_of(range(len(clip.frames)), vision.temporal_patch_size)
    for number, places in enumerate(rows):
        frames = [clip.frames[i] for i in places]
        seconds = tuple(i * clip.step / vision.temporal_patch_size for i in places)
        row = Row(number, len(rows), clip.step, seconds, tuple(map(len, frames)))
        data = b"".join(frames)
        yield Media("video", 0, grid_tokens(grid, vision.merge_size), (width, height), grid, len(data), row), data


def _frame(rng: np.random.Generator, width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()
