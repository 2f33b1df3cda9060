"""Qwen2-VL: every block of its tower attends over whole images."""

from typing import TYPE_CHECKING

from lmms.train.families import vision
from lmms.train.families.family import Family, Images, Tower
from lmms.train.families.text import language_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def tower(hf_config: "PretrainedConfig") -> Tower:
    """What the tower's inputs depend on."""
    config = hf_config.vision_config
    return Tower(patch_size=config.patch_size, merge_size=config.spatial_merge_size)


FAMILY = Family(
    auto_class="AutoModelForImageTextToText",
    parts=(
        vision.tower_part("fc1", "fc2"),
        vision.merger_part("merger", norm="ln_q", first=r"mlp\.0", second=r"mlp\.2"),
        language_model(),
    ),
    positions=vision.positions,
    images=Images(tower=tower, inputs=vision.tower_inputs, features=vision.features),
    replacements=(vision.embed_by_product,),
    stacked=vision.STACKED,
)
