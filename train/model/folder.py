"""Whether a model folder describes a model that can be trained."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from lmms.configs.errors import ModelError
from lmms.configs.settings.memory import Recompute
from lmms.train.families import family_of
from lmms.train.model.build import build_model
from lmms.train.model.forward import TrainModel

_BAD_VALUES = (
    *(StrictDataclassError, OSError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, RuntimeError, AssertionError),
)
"""Errors from wrong values in a config.json: transformers checks types, the rest fails where a module is made."""


def model_of(folder: Path, recompute: Recompute, recompute_vision: Recompute | None = None) -> TrainModel:
    """The model of a folder's config.json on the meta device, see build_model. ModelError where no model is in it."""
    file = folder / "config.json"
    try:
        body, _ = PretrainedConfig.get_config_dict(folder)
        # transformers would fill in a default language model. Older files have the language model's keys at the top.
        family, inner = family_of(body.get("model_type", "")), body.get("thinker_config", body)
        if (family.images or family.sounds) and not {"text_config", "hidden_size"} & inner.keys():
            raise ModelError(f"{file} has no text_config, expected the language model's sizes; copy the folder again")
        config = AutoConfig.from_pretrained(folder)
        # Of a model that speaks, the part that reads and writes text.
        return build_model(getattr(config, "thinker_config", config), recompute, recompute_vision)
    except _BAD_VALUES as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{file} describes no model that can be built ({type(error).__name__}: {text})") from error
