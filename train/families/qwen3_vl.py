"""Qwen3-VL: learned positions stretched over each image; features of several depths (DeepStack, arXiv 2406.04334)."""

from torch import Tensor
from transformers import PreTrainedModel
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from lmms.train.families import vision
from lmms.train.families.vision import Tower, TowerInputs


def tower_inputs(grid_thw: Tensor, tower: Tower) -> TowerInputs:
    """Those of every family, and for each patch which learned positions it mixes, with which weights."""
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_thw, tower.position_side, mode="bilinear", align_corners=True, spatial_merge_size=tower.merge_size
    )
    return {**vision.tower_inputs(grid_thw, tower), "interp_indices": indices, "interp_weights": weights}


def add_by_rows(language_model: PreTrainedModel) -> None:
    """Let the language model add deep features at given rows; its own way finds them by a mask, which synchronises.

    It then takes the rows, int64 [image tokens], in the place of `visual_pos_masks`.
    """
    language_model._deepstack_process = _add_features


def _add_features(hidden: Tensor, rows: Tensor, features: Tensor) -> Tensor:
    return hidden.index_add(1, rows, features.to(hidden.dtype).unsqueeze(0))
