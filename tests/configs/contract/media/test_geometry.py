"""The resize rule against transformers' own: one pixel off, and every placeholder behind the image is off."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lmms.configs.contract.media.geometry import Vision, grid_patches, grid_tokens, image_grid, resized
from lmms.configs.contract.model_folder import read_model_folder

VISION_FOLDERS = ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"]


def vision(patch_size: int, merge_size: int, min_pixels: int, max_pixels: int) -> Vision:
    return Vision(
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=2,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


def outcome(rule: Any, *args: Any, **kwargs: Any) -> Any:
    """What a rule returns, or the name of the error that it raises."""
    try:
        return rule(*args, **kwargs)
    except ValueError:
        return "ValueError"


@settings(deadline=None, max_examples=500)
@given(
    height=st.integers(1, 20_000) | st.integers(1, 60),
    width=st.integers(1, 20_000) | st.integers(1, 60),
    patch_size=st.sampled_from([14, 16]),
    merge_size=st.sampled_from([1, 2, 4]),
    bounds=st.tuples(st.integers(1, 2**24), st.integers(1, 2**24)).map(sorted),
)
@example(height=200, width=1, patch_size=14, merge_size=2, bounds=[3136, 12845056])
@example(height=201, width=1, patch_size=14, merge_size=2, bounds=[3136, 12845056])
@example(height=42, width=70, patch_size=14, merge_size=2, bounds=[1, 2**24])  # 1.5 and 2.5: half to even
def test_resized_is_transformers_smart_resize(
    height: int, width: int, patch_size: int, merge_size: int, bounds: list[int]
) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    low, high = bounds
    settings = vision(patch_size, merge_size, low, high)
    expected = outcome(smart_resize, height, width, factor=patch_size * merge_size, min_pixels=low, max_pixels=high)
    assert outcome(resized, height, width, settings) == expected
    if expected != "ValueError":
        t, h, w = grid = image_grid(height, width, settings)
        assert (t, h * patch_size, w * patch_size) == (1, *expected)
        assert grid_tokens(grid, merge_size) * merge_size**2 == grid_patches(grid) == h * w


def test_an_aspect_ratio_above_the_limit_says_so() -> None:
    with pytest.raises(ValueError, match=r"aspect ratio 201\.0, at most 200 is possible"):
        resized(2010, 10, vision(14, 2, 3136, 12845056))


SIZES = [(1, 1), (13, 200), (28, 28), (41, 43), (56, 56), (99, 300), (224, 225), (480, 640), (333, 1001), (700, 47)]


@pytest.mark.parametrize("name", VISION_FOLDERS)
def test_grids_of_real_processors(name: str, model_folders: dict[str, Path]) -> None:
    """The processor's own grid of real pixels, and for large pictures the number that it computes."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(model_folders[name])
    found = read_model_folder(model_folders[name]).vision
    assert found is not None
    for height, width in SIZES:
        pixels = np.zeros((height, width, 3), np.uint8)
        (expected,) = processor(images=[pixels], input_data_format="channels_last")["image_grid_thw"].tolist()
        assert list(image_grid(height, width, found)) == expected, (height, width)
    for height, width in [(3000, 4000), (10_000, 12_000), (9_999, 77), (20, 3999)]:
        expected = processor.get_number_of_image_patches(height, width)
        assert grid_patches(image_grid(height, width, found)) == expected, (height, width)


@pytest.mark.parametrize("name", VISION_FOLDERS)
def test_grids_of_real_processors_with_other_pixel_limits(name: str, model_folders: dict[str, Path]) -> None:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(model_folders[name], min_pixels=20_000, max_pixels=60_000)
    found = read_model_folder(model_folders[name], min_pixels=20_000, max_pixels=60_000).vision
    assert found is not None
    for height, width in SIZES:
        pixels = np.zeros((height, width, 3), np.uint8)
        (expected,) = processor(images=[pixels], input_data_format="channels_last")["image_grid_thw"].tolist()
        assert list(image_grid(height, width, found)) == expected, (height, width)
