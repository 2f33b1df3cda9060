"""Names of parameters, and the part of the model that each belongs to."""

from torch import nn
from transformers import PreTrainedModel

from lmms.configs.by_part import Part
from lmms.train.families import family_of


def parameter_name(name: str) -> str:
    """The name in the transformers model, and so in a folder's safetensors, of a parameter or module of TrainModel.

    LoRA's layer around another layer is not in the name.
    """
    return name.removeprefix("hf.").replace(".base_layer", "")


def is_lora(name: str) -> bool:
    """Whether a parameter or module belongs to LoRA, by its name."""
    return ".lora_" in name


def own_parameters(model: nn.Module) -> dict[str, str]:
    """Each name of a parameter that is not LoRA's -> the first name of that parameter: tied weights have two."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    return {
        parameter_name(name): parameter_name(first[parameter])
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not is_lora(name)
    }


def part_of(model: nn.Module, name: str) -> Part:
    """The part that a parameter or module belongs to, by its name in the TrainModel or in the transformers model.

    A model without a transformers model in `hf`, such as a single layer, is all llm.
    """
    hf = getattr(model, "hf", None)
    return family_of(hf.config.model_type).part_of(name.removeprefix("hf.")).name if hf is not None else "llm"


def fixed_names(model: nn.Module) -> set[str]:
    """The parameters that are never trained, by their names in the transformers model."""
    hf = getattr(model, "hf", None)
    return set(family_of(hf.config.model_type).fixed) if hf is not None else set()


def language_model(hf: PreTrainedModel) -> PreTrainedModel:
    """The part of a transformers model that reads embeddings and has the blocks of the language model."""
    return family_of(hf.config.model_type).language_model(hf)


def towers(hf: PreTrainedModel) -> list[tuple[Part, nn.Module]]:
    """The modules that turn media into embeddings, each with its part of the model."""
    return family_of(hf.config.model_type).towers(hf)
