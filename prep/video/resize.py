import numpy as np
from numpy.typing import NDArray
from PIL import Image


def resized(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
