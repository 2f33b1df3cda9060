"""Image size -> resized size -> grid -> tokens. No other module knows this rule.

The rule is `smart_resize` of the Qwen processors (transformers, models/qwen2_vl): sides
are multiples of patch_size * merge_size, the area lies between min_pixels and max_pixels, the aspect ratio changes as
little as that allows. Python's round (half to even) is part of it.
"""

import math
from dataclasses import dataclass

MAX_ASPECT_RATIO = 200
"""Longer side over shorter side; the limit itself is allowed (the processors raise above it)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vision:
    """The processor settings that decide geometry and pixels, as read from preprocessor_config.json."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, expected a whole number above 0")
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in values):
                raise ValueError(f"{name} is {values!r}, expected three numbers")
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {self.image_std!r}, expected numbers above 0")

    @property
    def factor(self) -> int:
        """Side of the square of pixels behind one token."""
        return self.patch_size * self.merge_size


def aspect_ratio(height: int, width: int) -> float:
    """Longer side over shorter side."""
    return max(height, width) / min(height, width)


def resized(height: int, width: int, vision: Vision) -> tuple[int, int]:
    """(height, width) in pixels after the processor's resize. Raises ValueError above MAX_ASPECT_RATIO."""
    if aspect_ratio(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(f"aspect ratio {aspect_ratio(height, width):.1f}, at most {MAX_ASPECT_RATIO} is possible")
    factor = vision.factor
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > vision.max_pixels:
        shrink = math.sqrt((height * width) / vision.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < vision.min_pixels:
        grow = math.sqrt(vision.min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def image_grid(height: int, width: int, vision: Vision) -> tuple[int, int, int]:
    """(t, h, w): patches of a still image of this size; t is 1."""
    new_height, new_width = resized(height, width, vision)
    return 1, new_height // vision.patch_size, new_width // vision.patch_size


def grid_patches(grid_thw: tuple[int, int, int]) -> int:
    """Patches that enter the vision tower."""
    t, h, w = grid_thw
    return t * h * w


def grid_tokens(grid_thw: tuple[int, int, int], merge_size: int) -> int:
    """Tokens of the language model that the merged patches fill."""
    return grid_patches(grid_thw) // merge_size**2
