"""What prep does differently for each family of models: one frozen value and one module for each kind of template."""

from collections.abc import Mapping
from dataclasses import replace

from lmms.prep.render.families import text, vision
from lmms.prep.render.families.family import Family

FAMILIES: Mapping[str, Family] = {
    "qwen2": text.FAMILY,
    "qwen3": text.FAMILY,
    "qwen2_vl": vision.FAMILY,
    "qwen2_5_vl": replace(vision.FAMILY, coords="absolute"),
    "qwen3_vl": replace(vision.FAMILY, clip=vision.rows_with_times),
}
"""model_type of config.json -> family."""
