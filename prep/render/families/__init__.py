"""What prep does differently for each family of models: one frozen value and one module for each kind of template."""

from collections.abc import Mapping
from dataclasses import replace

from lmms.prep.render.families import omni, text, vision
from lmms.prep.render.families.family import Family

FAMILIES: Mapping[str, Family] = {
    "qwen2": text.FAMILY,
    "qwen3": text.FAMILY,
    "qwen2_vl": vision.FAMILY,
    "qwen2_5_vl": replace(vision.FAMILY, coords="absolute"),
    "qwen3_vl": replace(vision.FAMILY, clip=vision.rows_with_times),
    "qwen2_audio": omni.AUDIO,
    "qwen2_5_omni": omni.FAMILY,
    "qwen2_5_omni_thinker": omni.FAMILY,
}
"""model_type of config.json -> family."""
