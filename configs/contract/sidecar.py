"""A pack -> its row of packs.parquet: made when a pack is written, made again when a folder is verified."""

from typing import Any

import numpy as np

from lmms.configs.contract.loss_weight import total_weights
from lmms.configs.contract.pack import SOUND_TABLE, Pack

PLACE_COLUMNS = ("shard", "offset", "bytes", "xxh3")
"""The columns of PACK_TABLE that say where a pack is stored. The other columns follow from the pack: see pack_row."""


def pack_row(pack: Pack, hears: bool = False) -> dict[str, Any]:
    """Column of PACK_TABLE -> the pack's value, for every column but PLACE_COLUMNS.

    hears: whether the model does; then the columns of SOUND_TABLE, too.
    """
    lengths = pack.lengths.astype(np.int64)
    sources, source_of = np.unique(pack.samples[:, 0], return_inverse=True)
    return {
        "tokens": len(pack.input_ids),
        "target_tokens": int(np.diff(pack.targets.astype(np.int64)).sum()),
        **total_weights(pack),
        "segments": len(lengths),
        "sum_squared_lengths": int((lengths**2).sum()),
        "patches": pack.patches,
        "sum_squared_patches": pack.sum_squared_patches,
        "media": len(pack.media),
        **({name: getattr(pack, name) for name in SOUND_TABLE} if hears else {}),
        "source_ids": sources.tolist(),
        "source_tokens": [int(lengths[source_of == i].sum()) for i in range(len(sources))],
    }
