"""What a vision tower takes for all images of a batch, made on the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmms.configs.contract.pack import Media
from lmms.train.batch.frames import repeated
from lmms.train.batch.images import pixel_constants
from lmms.train.batch.recipe import Recipe
from lmms.train.families import images_of
from lmms.train.families.family import TowerInputs
from lmms.train.parallel.share import Exchange, exchange_of, image_sizes, share_media


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """A tower's inputs for this rank's share of the images, and the rows of its tokens that features fill."""

    patches: Tensor
    """uint8 [patches, 3 * frames * patch_size**2]"""
    frames: int
    """Frames of each patch: 1 where all images are still, since a still image is the same in every frame."""
    pixel_constants: Tensor
    """float32 [3, 3], see images.pixel_constants"""
    grid_thw: Tensor
    """int64 [images, 3]"""
    rows: Tensor
    """int64 [image tokens]: the rows that the features fill, in order; after the exchange, if there is an exchange."""
    tower: TowerInputs
    temporal_patch_size: int
    exchange: Exchange | None
    """Which features go to which rank; None where no rank shares its packs with another."""


def make_pictures(
    recipe: Recipe, media: Sequence[Media], patches: Mapping[int, npt.NDArray[np.uint8]], tokens: int
) -> Pictures:
    """The tower's inputs from each image's place in a sequence of `tokens` tokens, and from this rank's patches.

    recipe: of a model with a tower. patches: image -> uint8 [patches, 3 * frames * patch_size**2], of at least those of
    this rank; a row of a video counts as an image here.
    Without any image: one black image of a single merged patch, which fills no row. A rank without images runs the
    tower on this image when another rank has images.
    """
    # Sets differ in the areas of their images alone, which are settled by now.
    vision, tower, share = recipe.sets[0].vision, recipe.tower, recipe.share
    assert vision is not None
    assert tower is not None
    m = vision.merge_size
    shares = share_media(image_sizes(media), share.ranks)
    images = shares[share.index]
    black = np.zeros((m**2, 3 * vision.patch_size**2), np.uint8)
    frames = vision.temporal_patch_size if any(media[image].row for image in images) else 1
    shown = [
        repeated(patches[image], frames) if frames > 1 and media[image].row is None else patches[image]
        for image in images
    ]
    pixels = np.concatenate(shown or [black])
    grid_thw = torch.tensor([media[image].grid_thw for image in images] or [(1, m, m)], dtype=torch.int64)
    rows, exchange = exchange_of(media, shares, tokens, share)
    return Pictures(
        patches=torch.from_numpy(pixels),
        frames=frames,
        pixel_constants=pixel_constants(vision),
        grid_thw=grid_thw,
        rows=torch.from_numpy(rows),
        tower=images_of(recipe.family).inputs(grid_thw, tower),
        temporal_patch_size=vision.temporal_patch_size,
        exchange=exchange if share.ranks > 1 else None,
    )
