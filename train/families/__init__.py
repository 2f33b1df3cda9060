"""What training does differently for each kind of model. One small file a kind; this table names them."""

from collections.abc import Callable, Mapping

from torch import Tensor

from lmms.train.families import qwen2_5_vl, qwen3_vl, vision
from lmms.train.families.vision import Tower, TowerInputs

TOWER_INPUTS: Mapping[str, Callable[[Tensor, Tower], TowerInputs]] = {
    "qwen2_vl": vision.tower_inputs,
    "qwen2_5_vl": qwen2_5_vl.tower_inputs,
    "qwen3_vl": qwen3_vl.tower_inputs,
}
"""family -> (grids int64 [images, 3], what the tower is like) to the tower's keyword arguments beside pixels."""
