"""What a vision tower takes for all images of a batch, made on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmms.configs.contract import Media
from lmms.configs.geometry import Vision
from lmms.train.families import TOWER_INPUTS
from lmms.train.families.vision import Tower, TowerInputs
from lmms.train.pixels import pixel_constants


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """A tower's inputs, and where in the sequence its features go."""

    patches: Tensor
    """uint8 [patches, 3 * patch_size**2]"""
    pixel_constants: Tensor
    """float32 [3, 3], see pixels.pixel_constants"""
    grid_thw: Tensor
    """int64 [images, 3]"""
    rows: Tensor
    """int64 [image tokens]: the rows of the sequence that the features fill, in order."""
    tower: TowerInputs
    temporal_patch_size: int


def make_pictures(
    family: str, media: Sequence[Media], patches: Sequence[npt.NDArray[np.uint8]], vision: Vision, tower: Tower
) -> Pictures:
    """The tower's inputs from each image's place and its uint8 patches [patches, 3 * patch_size**2].

    Without any image: one black image of a single merged patch, which fills no row. A rank without images runs the
    tower on it when another rank has some.
    """
    m = vision.merge_size
    pixels = np.concatenate(patches or [np.zeros((m**2, 3 * vision.patch_size**2), np.uint8)])
    grid_thw = torch.tensor([entry.grid_thw for entry in media] or [(1, m, m)], dtype=torch.int64)
    places = [torch.arange(entry.start, entry.end) for entry in media]
    return Pictures(
        patches=torch.from_numpy(pixels),
        pixel_constants=pixel_constants(vision),
        grid_thw=grid_thw,
        rows=torch.cat(places) if places else torch.zeros(0, dtype=torch.int64),
        tower=TOWER_INPUTS[family](grid_thw, tower),
        temporal_patch_size=vision.temporal_patch_size,
    )
