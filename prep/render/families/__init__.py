"""What prep does differently for each family of models: one frozen value each, in a file of its own."""

from collections.abc import Mapping

from lmms.prep.render.families import text, vision
from lmms.prep.render.families.family import Family

FAMILIES: Mapping[str, Family] = {
    "qwen2": text.FAMILY,
    "qwen3": text.FAMILY,
    "qwen2_vl": vision.FAMILY,
    "qwen2_5_vl": vision.FAMILY,
    "qwen3_vl": vision.FAMILY,
}
"""By the model_type of config.json."""
