"""A batch padded to one of a run's few shapes, by conversations and images that nothing else attends to.

No target is in them and their features go nowhere, so losses and gradients stay as they are. Boundaries are padded by
repeating the last: conversations of no length.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch
from lmms.train.batch.recipe import Recipe
from lmms.train.batch.shapes import Shapes, frame_side
from lmms.train.batch.vision import Pictures
from lmms.train.families import TOWER_INPUTS
from lmms.train.families.vision import Tower, TowerInputs

_DENSE_STEPS = 4
"""Windows in the dense batch are a multiple of this share of all."""


def pad_batch(batch: Batch, recipe: Recipe) -> Batch:
    """The same batch in the first of the recipe's shapes that it fits; as it is where the recipe has none.

    TrainError for one that fits none: its packs are not those of the sidecar.
    """
    shapes = recipe.shapes
    if shapes is None:
        return batch
    gap = shapes.tokens - batch.input_ids.shape[1]
    segments, longest = _pair(batch, gap, shapes)
    pictures = batch.vision
    if pictures is not None and recipe.tower is not None:
        pictures = _pad_pictures(pictures, recipe.family, recipe.tower, shapes, batch)
    return replace(
        batch,
        input_ids=F.pad(batch.input_ids, (0, gap)),
        position_ids=F.pad(batch.position_ids, (0, gap)),
        cu_seqlens=_fill(batch.cu_seqlens, shapes.tokens, longest, segments),
        max_length=longest,
        vision=pictures,
    )


def _pair(batch: Batch, gap: int, shapes: Shapes) -> tuple[int, int]:
    segments = len(batch.cu_seqlens) - 1
    for most, longest in shapes.conversations:
        if batch.max_length <= longest and gap >= 0 and segments + -(-gap // longest) <= most:
            return most, longest
    raise _misfit(batch, f"{shapes.tokens - gap} tokens in {segments} conversations of up to {batch.max_length}")


def _misfit(batch: Batch, found: str) -> TrainError:
    return TrainError(f"{', '.join(batch.packs)}: {found}, more than packs.parquet says; rebuild the shards")


def _fill(cu_seqlens: Tensor, total: int, piece: int, count: int) -> Tensor:
    """int32 [count + 1]: these boundaries, then one every `piece`, and from `total` on the same."""
    last = int(cu_seqlens[-1])
    added = last + piece * torch.arange(1, count + 2 - len(cu_seqlens))
    return torch.cat([cu_seqlens, added.clamp(max=total).to(torch.int32)])


def _pad_pictures(pictures: Pictures, family: str, tower: Tower, shapes: Shapes, batch: Batch) -> Pictures:
    patches = len(pictures.patches)
    total = -(-patches // shapes.patches) * shapes.patches
    grid_thw = torch.cat([pictures.grid_thw, _padding_grids(total - patches, tower)])
    inputs = TOWER_INPUTS[family](grid_thw, tower)
    images, longest = inputs["cu_seqlens"], inputs["max_seqlen"]
    assert isinstance(images, Tensor)
    assert isinstance(longest, int)
    if len(images) - 1 > shapes.images or longest > shapes.longest_image:
        raise _misfit(batch, f"{len(pictures.grid_thw)} images of up to {longest} patches")
    fixed: TowerInputs = {
        "cu_seqlens": _fill(images, total, total, shapes.images),
        "max_seqlen": shapes.longest_image,
        **(_fixed_windows(inputs, total, tower, shapes.images) if "dense_windows" in inputs else {}),
    }
    return replace(
        pictures,
        patches=F.pad(pictures.patches, (0, 0, 0, total - patches)),
        grid_thw=grid_thw,
        tower=inputs | fixed,
    )


def _padding_grids(patches: int, tower: Tower) -> Tensor:
    """int64 [0 to 2, 3]: as many squares as there is room for, and a strip for the rest."""
    side = frame_side(tower)
    squares, rest = divmod(patches, side**2)
    grids = [(squares, side, side), (1, tower.merge_size, rest // tower.merge_size)]
    return torch.tensor([grid for grid in grids if grid[0] * grid[2]], dtype=torch.int64).reshape(-1, 3)


def _fixed_windows(inputs: TowerInputs, total: int, tower: Tower, images: int) -> TowerInputs:
    """Fewer dense windows, so that there are few numbers of them; those taken out stand before the narrower ones."""
    whole, size, narrow = inputs["dense_windows"], inputs["max_window_seqlen"], inputs["cu_window_seqlens"]
    assert isinstance(whole, int)
    assert isinstance(size, int)
    assert isinstance(narrow, Tensor)
    step = max(total // size // _DENSE_STEPS, 1)
    dense = whole // step * step
    taken_out = size * torch.arange(whole - dense + 1, dtype=torch.int32)
    boundaries = torch.cat([taken_out, narrow[1:] + taken_out[-1]])
    # But for a corner of each image, a window is whole in one direction.
    most = total // (frame_side(tower) * tower.merge_size) + images
    return {"dense_windows": dense, "cu_window_seqlens": _fill(boundaries, total - dense * size, total, most)}
