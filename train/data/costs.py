"""What packs cost, in floating-point operations: from a pack itself or from the sidecar alone, without torch.

The cost of one token, one patch and so on comes from the model (flops.model_cost), or from a run's phases.json.
"""

from dataclasses import fields

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.pack import Pack
from lmms.train.data.shards import Sidecar


def pack_flops(cost: ModelCost, pack: Pack) -> float:
    """Operations of a pack's share of a training step."""
    lengths = pack.lengths.astype(np.int64)
    grids = [m.grid_thw for m in pack.media]
    return float(
        cost.token * len(pack.input_ids)
        + cost.target * int(np.diff(pack.targets).sum())
        + cost.squared_length * int((lengths**2).sum())
        + cost.patch * pack.patches
        + cost.squared_image * pack.sum_squared_patches
        + cost.squared_window * sum(_squared_windows(grid, cost.window) for grid in grids)
        + cost.sound_position * pack.sound_positions
        + cost.squared_sound * pack.sum_squared_sounds
    )


def table_costs(cost: ModelCost, sidecar: Sidecar) -> npt.NDArray[np.int64]:
    """int64 [2, packs]: operations in the language model and in the towers, from the sidecar alone.

    The operations of pack_flops, but windows at the edges of images count as whole windows. Integers, since the order
    of a run depends on the costs.
    """
    units = {field.name: np.int64(round(getattr(cost, field.name))) for field in fields(ModelCost)}
    patch = units["patch"] + units["squared_window"] * units["window"] ** 2
    costs = np.empty((2, len(sidecar)), np.int64)
    costs[0] = units["token"] * sidecar.tokens
    costs[0] += units["target"] * sidecar.target_tokens
    costs[0] += units["squared_length"] * sidecar.sum_squared_lengths
    costs[1] = patch * sidecar.patches
    costs[1] += units["squared_image"] * sidecar.sum_squared_patches
    costs[1] += units["sound_position"] * sidecar.sound_positions
    costs[1] += units["squared_sound"] * sidecar.sum_squared_sounds
    return costs


def _squared_windows(grid_thw: tuple[int, int, int], side: int) -> int:
    """Sum of squared patches over an image's windows; those at the right and lower edges are cut."""
    if not side:
        return 0
    t, *sides = grid_thw
    rows, columns = (length // side * side**2 + (length % side) ** 2 for length in sides)
    return t * rows * columns
