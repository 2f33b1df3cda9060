"""The size that a part asks for: the rule of qwen_vl_utils' fetch_media, then the processor's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.contract.media.geometry import Vision, image_grid
from lmms.configs.contract.model_folder import read_model_folder
from lmms.prep.media.resize import LEAST_TOKENS, MOST_TOKENS, Ask, picture_grid
from lmms.prep.reject import Reject

LIMITS = st.integers(1, 2**24) | st.none()


def wide_vision(patch_size: int) -> Vision:
    """Limits that change no size."""
    return Vision(
        patch_size=patch_size,
        merge_size=2,
        temporal_patch_size=2,
        min_pixels=1,
        max_pixels=2**40,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


def asked(height: int, width: int, ask: Ask, patch_size: int = 14) -> tuple[int, int] | str:
    """(height, width) in pixels, or the reason of the rejection."""
    try:
        _, rows, columns = picture_grid(height, width, wide_vision(patch_size), ask)
    except Reject as reject:
        return reject.reason
    return rows * patch_size, columns * patch_size


@settings(deadline=None)
@given(
    height=st.integers(33, 5000),
    width=st.integers(33, 5000),
    limits=st.tuples(LIMITS, LIMITS),
    patch_size=st.sampled_from([14, 16]),
)
def test_limits_are_those_of_smart_resize(
    height: int, width: int, limits: tuple[int | None, int | None], patch_size: int
) -> None:
    """Pictures above one token, where transformers' rule and that of qwen_vl_utils are the same."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    factor = 2 * patch_size
    least, most = limits[0] or LEAST_TOKENS * factor**2, limits[1] or MOST_TOKENS * factor**2
    found = asked(height, width, Ask(*limits), patch_size)
    if least > most:
        assert found == "bad_part"
    elif found != "aspect_ratio":
        assert found == smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most)


@pytest.mark.parametrize(
    ("size", "ask", "expected"),
    [
        ((480, 640), Ask(), (476, 644)),
        ((480, 640), Ask(max_pixels=50_176), (168, 252)),
        ((20, 30), Ask(min_pixels=50_176), (196, 280)),
        ((480, 640), Ask(size=(280, 420)), (280, 420)),
        ((480, 640), Ask(size=(281, 435)), (280, 448)),
        ((480, 640), Ask(max_pixels=784, size=(280, 420)), (280, 420)),
        ((480, 640), Ask(size=(8000, 8000)), (3584, 3584)),
        ((10, 2000), Ask(), (28, 1988)),  # the processor alone makes 28 x 812 of it
    ],
)
def test_sizes_are_those_that_qwen_vl_utils_gives(size: tuple[int, int], ask: Ask, expected: tuple[int, int]) -> None:
    """The expected sizes were printed by smart_resize of qwen_vl_utils 0.0.14."""
    assert asked(*size, ask) == expected


@pytest.mark.parametrize(
    ("size", "ask", "reason"),
    [
        ((10, 2001), None, "aspect_ratio"),
        ((480, 640), Ask(size=(28, 5700)), "aspect_ratio"),
        ((29, 5800), Ask(), "aspect_ratio"),  # 28 x 5796 after the first resize
        ((480, 640), Ask(min_pixels=2**30), "bad_part"),
    ],
)
def test_a_size_that_no_processor_takes_is_rejected(size: tuple[int, int], ask: Ask | None, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        picture_grid(*size, wide_vision(14), ask)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_grids_are_those_of_the_processor_on_the_picture_resized_so(name: str, model_folders: dict[str, Path]) -> None:
    from transformers import AutoImageProcessor

    limits: dict[str, Any] = {"min_pixels": 20_000, "max_pixels": 60_000}
    processor = AutoImageProcessor.from_pretrained(model_folders[name], **limits)
    vision = read_model_folder(model_folders[name], **limits).vision
    assert vision is not None
    for ask in (
        Ask(max_pixels=30_000),
        Ask(min_pixels=50_000),
        Ask(size=(224, 224)),
        Ask(size=(448, 64)),
        Ask(4, 9000),
    ):
        height, width = asked(480, 333, ask, vision.patch_size)  # type: ignore[misc]
        pixels = np.zeros((height, width, 3), np.uint8)
        (expected,) = processor(images=[pixels], input_data_format="channels_last")["image_grid_thw"].tolist()
        assert list(picture_grid(480, 333, vision, ask)) == expected, ask
    assert picture_grid(480, 333, vision, None) == image_grid(480, 333, vision)
