"""Frames are resized as torch does, to the last bit, for every size."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from lmms.prep.video.resize import resized

SIDE = st.integers(1, 40) | st.integers(1, 400)


def noise(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """Black and white pixels among others: sums reach below 0 and above 255."""
    return np.random.default_rng(seed).choice(np.array([0, 255, 1, 128, 254], np.uint8), (height, width, 3))


def by_torch(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """The call of transformers' video processors."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None]
    bicubic = InterpolationMode.BICUBIC
    result = transforms.resize(pixels, [height, width], interpolation=bicubic, antialias=True)
    return result[0].permute(1, 2, 0).numpy()


@settings(deadline=None, max_examples=60)
@given(before=st.tuples(SIDE, SIDE), after=st.tuples(SIDE, SIDE), seed=st.integers(0, 2**32 - 1))
@example(before=(1920, 1080), after=(784, 448), seed=0)
@example(before=(340, 256), after=(1288, 952), seed=1)
@example(before=(3840, 16), after=(28, 28), seed=2)
@example(before=(300, 200), after=(300, 56), seed=3)
@example(before=(56, 84), after=(56, 84), seed=4)
def test_the_pixels_are_those_of_torch(before: tuple[int, int], after: tuple[int, int], seed: int) -> None:
    frame = noise(*before, seed)
    assert np.array_equal(resized(frame, *after), by_torch(frame, *after))


def test_a_turned_frame_is_resized_too() -> None:
    frame = np.rot90(noise(64, 48, 5))
    assert np.array_equal(resized(frame, 28, 56), by_torch(frame.copy(), 28, 56))
