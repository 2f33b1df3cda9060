"""The shapes that batches are padded to, for packs that are in no file."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from lmms.configs.contract.pack import SOUND_TABLE, Pack
from lmms.train.batch.recipe import Recipe
from lmms.train.batch.shapes import shapes_of
from lmms.train.data.shards import Sidecar
from tests.kit.model.models import tiny_recipe

SEQ_LEN = 320


def sidecar_of(packs: Sequence[Pack]) -> Sidecar:
    """The columns of packs.parquet that costs and shapes depend on; the others are 0."""
    columns = {
        "tokens": [len(pack.input_ids) for pack in packs],
        "target_tokens": [int(np.diff(pack.targets).sum()) for pack in packs],
        "segments": [len(pack.lengths) for pack in packs],
        "sum_squared_lengths": [int((pack.lengths.astype(np.int64) ** 2).sum()) for pack in packs],
        "patches": [pack.patches for pack in packs],
        "sum_squared_patches": [pack.sum_squared_patches for pack in packs],
        "media": [len(pack.media) for pack in packs],
        **{name: [getattr(pack, name) for pack in packs] for name in SOUND_TABLE},
    }
    zeros = {field.name: [0] * len(packs) for field in fields(Sidecar)}
    return Sidecar(**{name: np.array(column) for name, column in (zeros | columns).items()})


def padding_recipe(family: str, packs: Sequence[Pack], micro_packs: int = 1) -> Recipe:
    recipe = tiny_recipe(family)
    audio = recipe.sets[0].limits.audio
    return replace(recipe, shapes=shapes_of([sidecar_of(packs)], SEQ_LEN, micro_packs, recipe.tower, audio))
