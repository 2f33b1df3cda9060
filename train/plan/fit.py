"""Whether a model folder is the folder that shards were built for. Reads JSON alone: no torch, no transformers."""

from collections.abc import Sequence

from lmms.configs.contract.families import trained_as
from lmms.configs.contract.manifest import Dataset, given_template
from lmms.configs.contract.model_folder import TRAIN_FILES, ModelFolder, read_model_folder, resolve_model
from lmms.configs.errors import ModelError


def fitting_model(model: str, dataset: Dataset) -> ModelFolder:
    """The model folder, if the shards were made with its tokenizer, template, family and processor.

    Shards that were built with another chat template than the model's have that template with them. The smallest and
    largest image area come from the shards too: prep may have used other areas than the processor's.
    """
    manifest = dataset.manifest
    vision = manifest.vision
    low, high = (vision.min_pixels, vision.max_pixels) if vision else (None, None)
    folder = read_model_folder(resolve_model(model, TRAIN_FILES), low, high, given_template(dataset))
    differences = [
        f"{name} is {actual or 'none'}, the shards have {expected or 'none'}"
        for name, actual, expected in (
            ("family", trained_as(folder.family), trained_as(manifest.family)),
            ("image_token_id", folder.image_token_id, manifest.image_token_id),
            ("audio_token_id", folder.audio_token_id, manifest.audio_token_id),
            *(
                (name, fingerprint[:12], manifest.fingerprints.get(name, "")[:12])
                for name, fingerprint in folder.fingerprints.items()
            ),
        )
        if actual != expected
    ]
    if differences:
        raise ModelError(
            f"{folder.path} does not fit the shards in {dataset.where}: {'; '.join(differences)};"
            " train with the model that the shards were built for, or build them again"
        )
    return folder


def check_one_template(datasets: Sequence[Dataset]) -> None:
    """ModelError for sets of shards with several chat templates: a model is exported with one."""
    for dataset in datasets[1:]:
        if dataset.manifest.fingerprints.get("template") != datasets[0].manifest.fingerprints.get("template"):
            raise ModelError(
                f"{datasets[0].where} and {dataset.where} have different chat templates; build both with the same"
                " --chat-template"
            )
