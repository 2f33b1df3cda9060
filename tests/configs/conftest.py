"""Packs small enough to be read, for the tests of the ground floor."""

from importlib import import_module
from types import ModuleType

import numpy as np
import pytest

from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.pack import Media, Pack

IMAGE = 99


@pytest.fixture(scope="session")
def mosaic() -> ModuleType:
    """The real mosaicml-streaming; its import costs seconds, so only the tests that ask for it pay."""
    return import_module("streaming")


@pytest.fixture
def limits() -> PackLimits:
    """What both packs below keep to."""
    return PackLimits(seq_len=16, max_patches=16, image_token_id=IMAGE, merge_size=2)


@pytest.fixture
def image_pack() -> Pack:
    """Two conversations: 3 tokens of text, then 7 tokens with a picture of 4 x 4 patches, so 4 tokens."""
    return Pack(
        input_ids=np.array([1, 2, 3, 4, IMAGE, IMAGE, IMAGE, IMAGE, 5, 6], np.int32),
        cu_seqlens=np.array([0, 3, 10], np.int32),
        targets=np.array([[1, 3], [8, 10]], np.int32),
        target_weights=np.array([1.0, 0.5]),
        sample_weights=np.array([1.0, 0.1]),
        samples=np.array([[0, 7], [1, 2**40]], np.int64),
        media=(Media("image", 4, 8, (60, 50), (1, 4, 4), 5),),
        media_bytes=b"\xff\xd8\x00\x01\x02",
    )


@pytest.fixture
def text_pack() -> Pack:
    """One conversation without media: the json column is [], the bytes column empty."""
    return Pack(
        input_ids=np.arange(1000, 1300, dtype=np.int32),
        cu_seqlens=np.array([0, 300], np.int32),
        targets=np.array([[10, 300]], np.int32),
        target_weights=np.array([1.0]),
        sample_weights=np.array([1.0]),
        samples=np.array([[0, 0]], np.int64),
        media=(),
        media_bytes=b"",
    )
