"""A row of a video -> the patches that enter a vision tower, as the video processors of transformers make them.

Bytes of all frames of the row, at the size of the grid: in their own bytes where prep has resized them, else resized
here (torch's bicubic with antialiasing on bytes). A row that lacks frames repeats its last.

Source: transformers 5.23, models/qwen2_vl/video_processing_qwen2_vl.py and image_processing_backends.py.
"""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.pack import Media, Row
from lmms.train.batch.images import BadMediaError, cut_patches, decoded


def row_patches(data: bytes, media: Media, row: Row, vision: Vision) -> npt.NDArray[np.uint8]:
    """uint8 [patches, 3 * temporal_patch_size * patch_size**2], in the tower's order. Raises BadMediaError."""
    ends = np.cumsum((0, *row.bytes)).tolist()
    _, rows, columns = media.grid_thw
    size = rows * vision.patch_size, columns * vision.patch_size
    frames = []
    for second, (start, end) in zip(row.seconds, pairwise(ends), strict=True):
        try:
            frames.append(_resized(decoded(data[start:end], media), size))
        except BadMediaError as error:
            raise BadMediaError(f"the frame at {second:g} s of a video: {error}") from error
    frames += frames[-1:] * (vision.temporal_patch_size - len(frames))
    return cut_patches(np.stack(frames), vision)


def repeated(patches: npt.NDArray[np.uint8], frames: int) -> npt.NDArray[np.uint8]:
    """The patches of a still picture, uint8 [patches, 3 * n], as those of a row of so many equal frames."""
    apart = patches.reshape(len(patches), 3, 1, -1)
    return np.broadcast_to(apart, (*apart.shape[:2], frames, apart.shape[3])).reshape(len(patches), -1)


def _resized(pixels: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3] at this (height, width)."""
    if pixels.shape[:2] == size:
        return pixels
    planes = torch.tensor(pixels).permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(planes, size, mode="bicubic", align_corners=False, antialias=True)
    return resized.squeeze(0).permute(1, 2, 0).numpy()
