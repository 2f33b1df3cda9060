"""Whether a model folder can be trained, and belongs to the shards."""

from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from lmms.configs.contract.manifest import Dataset
from lmms.configs.contract.model_folder import (
    TRAIN_FILES,
    ModelFolder,
    read_model_folder,
    resolve_model,
)
from lmms.configs.errors import ModelError
from lmms.configs.settings.memory import Recompute
from lmms.train.families import family_of
from lmms.train.model.build import build_model
from lmms.train.model.forward import TrainModel

_BAD_VALUES = (
    *(StrictDataclassError, OSError, ValueError, TypeError, AttributeError),
    *(LookupError, ArithmeticError, RuntimeError, AssertionError),
)
"""What wrong values in a config.json raise: transformers checks types, the rest fails where a module is made."""


def fitting_model(model: str, dataset: Dataset) -> ModelFolder:
    """The model folder, if its tokenizer, template, family and processor are those that made the shards.

    The smallest and largest image area are the shards' own: prep may have been told others than the processor's.
    """
    manifest = dataset.manifest
    vision = manifest.vision
    areas = (vision.min_pixels, vision.max_pixels) if vision else (None, None)
    folder = read_model_folder(resolve_model(model, TRAIN_FILES), *areas)
    differences = [
        f"{name} is {found or 'none'}, the shards have {expected or 'none'}"
        for name, found, expected in (
            ("family", folder.family, manifest.family),
            ("image_token_id", folder.image_token_id, manifest.image_token_id),
            *(
                (name, found[:12], manifest.fingerprints.get(name, "")[:12])
                for name, found in folder.fingerprints.items()
            ),
        )
        if found != expected
    ]
    if differences:
        raise ModelError(
            f"{folder.path} does not fit the shards in {dataset.where}: {'; '.join(differences)};"
            " train with the model that the shards were built for, or build them again"
        )
    return folder


def model_of(folder: Path, recompute: Recompute, recompute_vision: Recompute | None = None) -> TrainModel:
    """The model of a folder's config.json on the meta device, see build_model. ModelError where no model is in it."""
    file = folder / "config.json"
    try:
        body, _ = PretrainedConfig.get_config_dict(folder)
        # transformers would fill in a whole language model of its own. Older files have its keys at the top.
        if family_of(body.get("model_type", "")).images and not {"text_config", "hidden_size"} & body.keys():
            raise ModelError(f"{file} has no text_config, expected the language model's sizes; copy the folder again")
        return build_model(AutoConfig.from_pretrained(folder), recompute, recompute_vision)
    except _BAD_VALUES as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{file} describes no model that can be built ({type(error).__name__}: {text})") from error
