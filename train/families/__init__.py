"""What training does differently for each family of models: one frozen value and one file for each family."""

from collections.abc import Mapping

from lmms.configs.errors import ModelError
from lmms.train.families import qwen2_5_omni, qwen2_5_vl, qwen2_audio, qwen2_vl, qwen3_vl, text
from lmms.train.families.family import Family, Images, Sounds

FAMILIES: Mapping[str, Family] = {
    "qwen2": text.FAMILY,
    "qwen3": text.FAMILY,
    "qwen2_vl": qwen2_vl.FAMILY,
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen3_vl": qwen3_vl.FAMILY,
    "qwen2_audio": qwen2_audio.FAMILY,
    "qwen2_5_omni": qwen2_5_omni.FAMILY,
    "qwen2_5_omni_thinker": qwen2_5_omni.FAMILY,
}
"""model_type of config.json -> the family."""


def family_of(model_type: str) -> Family:
    """The family of a model. ModelError for a model_type that cannot be trained."""
    if model_type not in FAMILIES:
        raise ModelError(f"model_type {model_type!r} cannot be trained; expected one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def images_of(model_type: str) -> Images:
    """How a family takes images. ModelError for a family that reads text only."""
    images = family_of(model_type).images
    if images is None:
        raise ModelError(f"model_type {model_type!r} sees nothing, expected one that takes images")
    return images


def sounds_of(model_type: str) -> Sounds:
    """How a family takes sounds. ModelError for a family that hears nothing."""
    sounds = family_of(model_type).sounds
    if sounds is None:
        raise ModelError(f"model_type {model_type!r} hears nothing, expected one that takes sounds")
    return sounds
