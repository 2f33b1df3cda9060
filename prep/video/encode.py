"""A decoded frame -> the bytes of a picture."""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lmms.prep.video.facts import FrameFormat

_PNG_LEVEL = 1
"""Effort of zlib: levels above take a multiple of the time for a few percent of the bytes."""


def encoded(frame: NDArray[np.uint8], form: FrameFormat) -> bytes:
    """frame: (height, width, 3), RGB."""
    target = BytesIO()
    picture = Image.fromarray(frame)
    if form.encoding == "png":
        picture.save(target, "PNG", compress_level=_PNG_LEVEL)
    else:
        picture.save(target, "JPEG", quality=form.quality, subsampling="4:4:4")
    return target.getvalue()
