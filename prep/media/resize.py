"""The size that a record asks for a picture: `min_pixels`, `max_pixels`, or `resized_height` with `resized_width`.

The rule is that of `fetch_media` of qwen_vl_utils 0.0.14, which resizes a picture before the processor does. Where the
two disagree about a size, the processor has the last word, so the limits of a build hold for every picture.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

from lmms.configs.contract.media.geometry import MAX_ASPECT_RATIO, Vision, aspect_ratio, image_grid
from lmms.prep.reject import Reject

LEAST_TOKENS, MOST_TOKENS = 4, 16384
"""Limits of a picture for which a record states only one limit, or a size."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a part asks for its picture. None: not stated. `size` wins over the limits."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    size: tuple[int, int] | None = None
    """(height, width) in pixels."""


@cache
def with_areas(vision: Vision, min_pixels: int | None, max_pixels: int | None) -> Vision:
    """The processor's settings with other limits of a picture's area, in pixels, where they are given."""
    return replace(vision, min_pixels=min_pixels or vision.min_pixels, max_pixels=max_pixels or vision.max_pixels)


def picture_grid(height: int, width: int, vision: Vision, ask: Ask | None) -> tuple[int, int, int]:
    """(t, h, w): patches of a picture of this size. Raises Reject for a picture that is too long or asked to be."""
    _check_ratio(height, width, "the picture is")
    if ask:
        height, width = _asked_size(height, width, vision.factor, ask)
        _check_ratio(height, width, "its part asks for")
    return image_grid(height, width, vision)


def _asked_size(height: int, width: int, factor: int, ask: Ask) -> tuple[int, int]:
    least, most = LEAST_TOKENS * factor**2, MOST_TOKENS * factor**2
    if ask.size:
        height, width = ask.size
        _check_ratio(height, width, "its part asks for")
    else:
        least, most = ask.min_pixels or least, ask.max_pixels or most
    if least > most:
        raise Reject("bad_part", f"min_pixels {least} is above max_pixels {most}")
    new_height, new_width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if new_height * new_width > most:
        shrink = math.sqrt(height * width / most)
        new_height, new_width = (max(factor, math.floor(s / shrink / factor) * factor) for s in (height, width))
    elif new_height * new_width < least:
        grow = math.sqrt(least / (height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_height, new_width


def _check_ratio(height: int, width: int, what: str) -> None:
    ratio = aspect_ratio(height, width)
    if ratio > MAX_ASPECT_RATIO:
        message = f"{what} {width} x {height} pixels: aspect ratio {ratio:.1f}, at most {MAX_ASPECT_RATIO} is possible"
        raise Reject("aspect_ratio", message)
