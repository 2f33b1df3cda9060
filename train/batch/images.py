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

from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.media.images import (
    DAMAGE,
    FORMATS,
    NEEDS_HEIF,
    is_heic,
    pillow_reads_heic,
    strict_pillow,
    to_rgb,
)
from lmms.configs.contract.pack import Media
from lmms.configs.errors import TrainError


class BadMediaError(Exception):
    """An image of a pack that cannot be trained on; the message says why."""


def image_patches(data: bytes, media: Media, vision: Vision) -> npt.NDArray[np.uint8]:
    """uint8 [patches, 3 * patch_size**2] of a still image, in the tower's order: squares to merge stand together.

    The grid is the shard's: a record may ask for another size than the processor takes. Raises as `decoded` does.
    """
    _, rows, columns = media.grid_thw
    size = columns * vision.patch_size, rows * vision.patch_size
    resized = Image.fromarray(decoded(data, media)).resize(size, Image.Resampling.BICUBIC)
    return cut_patches(np.asarray(resized)[np.newaxis], vision)


def decoded(data: bytes, media: Media) -> npt.NDArray[np.uint8]:
    """uint8 [height, width, 3] of an encoded picture, upright.

    Raises BadMediaError when the bytes cannot be decoded or are not of the size that `media` states, TrainError when an
    extra is needed to decode.
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
    return np.asarray(rgb)


def normalised(patches: Tensor, constants: Tensor, temporal_patch_size: int, frames: int = 1) -> Tensor:
    """float32 [patches, 3 * temporal_patch_size * patch_size**2] from uint8 patches of one frame, or of all frames.

    Bit for bit the image processor's `pixel_values` on the CPU; the video processors multiply and divide in another
    order, which changes the last bit. constants is pixel_constants(vision) on the same device. frames: of a patch.
    """
    full, mean, std = constants.unsqueeze(-1)
    values = (patches.view(len(patches), 3, -1).float() / full - mean) / std
    by_frame: Tensor = values.view(len(patches), 3, frames, -1)
    if frames == 1:
        by_frame = by_frame.expand(-1, -1, temporal_patch_size, -1)
    return by_frame.reshape(len(patches), -1)


def pixel_constants(vision: Vision) -> Tensor:
    """float32 [3, 3]: full scale, mean and deviation of each channel. A tensor: CUDA divides by numbers inexactly."""
    return torch.tensor([(255.0,) * 3, vision.image_mean, vision.image_std], dtype=torch.float32)


def _formats(data: bytes) -> tuple[str, ...]:
    if not is_heic(data):
        return FORMATS
    if not pillow_reads_heic():
        raise TrainError(f"the shards hold HEIC pictures, and this environment cannot decode them: {NEEDS_HEIF}")
    return ("HEIF",)


def cut_patches(pixels: npt.NDArray[np.uint8], vision: Vision) -> npt.NDArray[np.uint8]:
    """[frames, height, width, 3] -> [patches, 3 * frames * p * p]: square by square of merged patches.

    In each patch the channels stand first, then the frames.
    """
    frames, height, width, _ = pixels.shape
    p, m = vision.patch_size, vision.merge_size
    squares = pixels.reshape(frames, height // (p * m), m, p, width // (p * m), m, p, 3)
    return squares.transpose(1, 4, 2, 5, 7, 0, 3, 6).reshape(-1, 3 * frames * p * p)


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
