"""A batch padded to one of a run's few shapes, by conversations and images that nothing else attends to.

The padding has no target and its features are not used, so losses and gradients stay as they are. Boundaries are padded
by repeating the last boundary: conversations of no length.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch
from lmms.train.batch.recipe import Recipe
from lmms.train.batch.shapes import Shapes, frame_side
from lmms.train.batch.sounds import Sounds
from lmms.train.batch.vision import Pictures
from lmms.train.families import images_of
from lmms.train.families.family import Tower, TowerInputs
from lmms.train.families.vision import fill


def pad_batch(batch: Batch, recipe: Recipe) -> Batch:
    """The batch in the first of the recipe's shapes that the batch fits; unchanged where the recipe has no shapes.

    TrainError for a batch that fits no shape: its packs are not those of the sidecar.
    """
    shapes = recipe.shapes
    if shapes is None:
        return batch
    gap = shapes.tokens - batch.input_ids.shape[1]
    segments, longest = _pair(batch, gap, shapes)
    pictures = batch.vision
    if pictures is not None and recipe.tower is not None:
        pictures = _pad_pictures(pictures, recipe.family, recipe.tower, shapes, batch)
    sounds = batch.sounds
    if sounds is not None:
        sounds = _pad_sounds(sounds, shapes, batch)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, gap)),
        position_ids=F.pad(batch.position_ids, (0, gap)),
        cu_seqlens=fill(batch.cu_seqlens, shapes.tokens, longest, segments),
        max_length=longest,
        vision=pictures,
        sounds=sounds,
    )


def _pair(batch: Batch, gap: int, shapes: Shapes) -> tuple[int, int]:
    segments = len(batch.cu_seqlens) - 1
    for most, longest in shapes.conversations:
        if batch.max_length <= longest and gap >= 0 and segments + -(-gap // longest) <= most:
            return most, longest
    raise _misfit(batch, f"{shapes.tokens - gap} tokens in {segments} conversations of up to {batch.max_length}")


def _misfit(batch: Batch, content: str) -> TrainError:
    return TrainError(f"{', '.join(batch.packs)}: {content}, more than packs.parquet says; rebuild the shards")


def _pad_pictures(pictures: Pictures, family: str, tower: Tower, shapes: Shapes, batch: Batch) -> Pictures:
    images, patches = images_of(family), len(pictures.patches)
    total = -(-patches // shapes.patches) * shapes.patches
    grid_thw = torch.cat([pictures.grid_thw, _padding_grids(total - patches, tower)])
    inputs = images.inputs(grid_thw, tower)
    boundaries, longest = inputs["cu_seqlens"], inputs["max_seqlen"]
    assert isinstance(boundaries, Tensor)
    assert isinstance(longest, int)
    if len(boundaries) - 1 > shapes.images or longest > shapes.longest_image:
        raise _misfit(batch, f"{len(pictures.grid_thw)} images of up to {longest} patches")
    fixed: TowerInputs = {
        "cu_seqlens": fill(boundaries, total, total, shapes.images),
        "max_seqlen": shapes.longest_image,
        **(images.fixed_inputs(inputs, total, tower, shapes.images) if images.fixed_inputs else {}),
    }
    return replace(
        pictures,
        patches=F.pad(pictures.patches, (0, 0, 0, total - patches)),
        grid_thw=grid_thw,
        tower=inputs | fixed,
    )


def _pad_sounds(sounds: Sounds, shapes: Shapes, batch: Batch) -> Sounds:
    """The positions behind those of the sounds are copies of the first, in chunks that nothing else attends to."""
    places, boundaries, longest = (sounds.tower[name] for name in ("valid_indices", "cu_seqlens", "max_seqlen"))
    assert isinstance(places, Tensor)
    assert isinstance(boundaries, Tensor)
    assert isinstance(longest, int)
    total = -(-len(places) // shapes.positions) * shapes.positions
    missing = shapes.chunks - (len(boundaries) - 1)
    if longest > shapes.longest_chunk or missing * shapes.longest_chunk < total - len(places):
        raise _misfit(batch, f"{len(boundaries) - 1} chunks of sounds of up to {longest} positions")
    fixed: TowerInputs = {
        "valid_indices": F.pad(places, (0, total - len(places))),
        "cu_seqlens": fill(boundaries, total, shapes.longest_chunk, shapes.chunks),
        "max_seqlen": shapes.longest_chunk,
    }
    return replace(sounds, tower=sounds.tower | fixed)


def _padding_grids(patches: int, tower: Tower) -> Tensor:
    """int64 [0 to 2, 3]: as many squares as there is room for, and a strip for the rest."""
    side = frame_side(tower)
    squares, rest = divmod(patches, side**2)
    grids = [(squares, side, side), (1, tower.merge_size, rest // tower.merge_size)]
    return torch.tensor([grid for grid in grids if grid[0] * grid[2]], dtype=torch.int64).reshape(-1, 3)
