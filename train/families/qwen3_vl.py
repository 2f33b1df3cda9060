"""Qwen3-VL: learned positions stretched over each image; features of several depths (DeepStack, arXiv 2406.04334)."""

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from lmms.train.families import vision
from lmms.train.families.family import Family, Images, Tower, TowerInputs
from lmms.train.families.text import language_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def tower(hf_config: "PretrainedConfig") -> Tower:
    """What the tower's inputs depend on."""
    config = hf_config.vision_config
    return Tower(
        patch_size=config.patch_size,
        merge_size=config.spatial_merge_size,
        position_side=int(config.num_position_embeddings**0.5),
    )


def tower_inputs(grid_thw: Tensor, tower: Tower) -> TowerInputs:
    """The inputs of every family, and the learned positions that each patch mixes, with their weights."""
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid_thw, tower.position_side, mode="bilinear", align_corners=True, spatial_merge_size=tower.merge_size
    )
    return {**vision.tower_inputs(grid_thw, tower), "interp_indices": indices, "interp_weights": weights}


def features(output: Any) -> list[Tensor]:
    """The tower's last features and the features of its deep layers, all [image tokens, hidden]."""
    return [output.pooler_output, *output.deepstack_features]


def deep_inputs(rows: Tensor, deep: list[Tensor]) -> dict[str, object]:
    """What the language model takes to add deep features to these rows, see add_by_rows."""
    return {"visual_pos_masks": rows, "deepstack_visual_embeds": deep}


def add_by_rows(hf: Any) -> None:
    """Let the language model add deep features at given rows; transformers finds rows by a mask, which synchronises.

    The model then takes the rows, int64 [image tokens], in the place of `visual_pos_masks`.
    """
    hf.model.language_model._deepstack_process = _add_features


def _add_features(hidden: Tensor, rows: Tensor, features: Tensor) -> Tensor:
    return hidden.index_add(1, rows, features.to(hidden.dtype).unsqueeze(0))


FAMILY = Family(
    auto_class="AutoModelForImageTextToText",
    parts=(
        vision.tower_part("linear_fc1", "linear_fc2"),
        vision.merger_part("merger", "deepstack_merger_list", norm="norm", first="linear_fc1", second="linear_fc2"),
        language_model(),
    ),
    positions=vision.positions,
    images=Images(tower=tower, inputs=tower_inputs, features=features, deep_inputs=deep_inputs),
    replacements=(vision.embed_by_product, add_by_rows),
    stacked=vision.STACKED,
)
