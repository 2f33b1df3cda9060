"""Sizes of pictures that this process has checked, by what the file holds: each file is checked once."""

from typing import Literal

import xxhash

from lmms.prep.media.images import image_size

MOST_KNOWN = 2**16
"""Pictures that are remembered, in some 20 MB; the oldest are forgotten first."""

_known: dict[tuple[bytes, str, int], tuple[int, int]] = {}
"""(hash of a file, how it was checked, most pixels) -> its size."""


def verified_size(data: bytes, verify: Literal["header", "structure", "decode"], max_pixels: int) -> tuple[int, int]:
    """What image_size gives; a file that passed before, of whatever name, is not checked again. Raises Reject."""
    key = (xxhash.xxh3_128_digest(data), verify, max_pixels)
    size = _known.get(key)
    if size is None:
        size = image_size(data, verify, max_pixels)
        if len(_known) >= MOST_KNOWN:
            del _known[next(iter(_known))]
        _known[key] = size
    return size
