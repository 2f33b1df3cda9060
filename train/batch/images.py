"""Encoded image -> the patches that enter a vision tower, as the processors' PIL back end makes them.

Decoded, turned by EXIF, put on white where transparent, resized (bicubic), cut into patches: bytes until here, of one
frame. Rescaling, normalising and doubling the frame are left to the device, so that an eighth of the data is sent.
One deliberate difference: 16-bit grey is scaled to 8 bits. Pillow's conversion clips the values: a picture turns white.

Source: transformers 5.23, models/qwen2_vl/image_processing_pil_qwen2_vl.py and image_transforms.py (convert_to_rgb).
"""

from io import BytesIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from lmms.configs.contract.geometry import Vision
from lmms.configs.contract.images import DAMAGE, FORMATS, NEEDS_HEIF, is_heic, pillow_reads_heic, strict_pillow, to_rgb
from lmms.configs.contract.pack import Media
from lmms.configs.errors import TrainError


class BadMediaError(Exception):
    """An image of a pack that cannot be trained on; the message says why."""


def image_patches(data: bytes, media: Media, vision: Vision) -> npt.NDArray[np.uint8]:
    """uint8 [patches, 3 * patch_size**2] of a still image, in the tower's order: squares to merge stand together.

    The grid is the shard's: a record may ask for another size than the processor takes. Raises BadMediaError when the
    bytes cannot be decoded or are not of the size that `media` states, TrainError when an extra is needed to decode.
    """
    try:
        with strict_pillow(None), Image.open(BytesIO(data), formats=_formats(data)) as image:
            # The stored size is the limit: pixels only once the header says what was accepted when shards were built.
            if media.size not in (image.size, image.size[::-1]):
                raise BadMediaError(f"the image is {_sides(image.size)}, the shard states {_sides(media.size)}")
            rgb = to_rgb(ImageOps.exif_transpose(image), image.format)
    except DAMAGE as error:
        raise BadMediaError(f"the image cannot be decoded ({type(error).__name__}: {error})") from error
    if rgb.size != media.size:
        raise BadMediaError(f"the image is {_sides(rgb.size)} upright, the shard states {_sides(media.size)}")
    _, rows, columns = media.grid_thw
    resized = rgb.resize((columns * vision.patch_size, rows * vision.patch_size), Image.Resampling.BICUBIC)
    return _patches(np.asarray(resized), vision)


def normalised(patches: Tensor, constants: Tensor, temporal_patch_size: int) -> Tensor:
    """float32 [patches, 3 * temporal_patch_size * patch_size**2] from uint8 patches of one frame.

    Bit for bit the processor's `pixel_values` on the CPU. constants is pixel_constants(vision) on the same device.
    """
    full, mean, std = constants.unsqueeze(-1)
    frame = (patches.view(len(patches), 3, -1).float() / full - mean) / std
    frames: Tensor = frame.unsqueeze(2).expand(-1, -1, temporal_patch_size, -1)
    return frames.reshape(len(patches), -1)


def pixel_constants(vision: Vision) -> Tensor:
    """float32 [3, 3]: full scale, mean and deviation of each channel. A tensor: CUDA divides by numbers inexactly."""
    return torch.tensor([(255.0,) * 3, vision.image_mean, vision.image_std], dtype=torch.float32)


def _formats(data: bytes) -> tuple[str, ...]:
    if not is_heic(data):
        return FORMATS
    if not pillow_reads_heic():
        raise TrainError(f"the shards hold HEIC pictures, and this environment cannot decode them: {NEEDS_HEIF}")
    return ("HEIF",)


def _patches(pixels: npt.NDArray[np.uint8], vision: Vision) -> npt.NDArray[np.uint8]:
    """[height, width, 3] -> [patches, 3 * p * p]: square by square of merged patches, channels first in each patch."""
    height, width, _ = pixels.shape
    p, m = vision.patch_size, vision.merge_size
    squares = pixels.reshape(height // (p * m), m, p, width // (p * m), m, p, 3)
    return squares.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3 * p * p)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
