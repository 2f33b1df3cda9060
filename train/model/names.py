"""Names of parameters, and the part of the model that each belongs to."""

from torch import nn
from transformers import PreTrainedModel

from lmms.configs.by_part import Part
from lmms.configs.contract.model_folder import VISION_FAMILIES


def parameter_name(name: str) -> str:
    """A name in TrainModel as it is in the transformers model, and so in a folder's safetensors: without LoRA's layer
    around the one that it adds to. Names of modules too."""
    return name.removeprefix("hf.").replace(".base_layer", "")


def is_lora(name: str) -> bool:
    """Whether a parameter or module is LoRA's and not the model's own, by its name."""
    return ".lora_" in name


def own_parameters(model: nn.Module) -> dict[str, str]:
    """Each name of a parameter that is not LoRA's -> its first name: tied weights have two."""
    first = {parameter: name for name, parameter in model.named_parameters()}
    return {
        parameter_name(name): parameter_name(first[parameter])
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not is_lora(name)
    }


def part_of(parameter_name: str) -> Part:
    """The part of the model that a parameter belongs to, by its name in TrainModel or in the transformers model."""
    _, tower, inner = parameter_name.partition("visual.")
    if not tower:
        return "llm"
    return "aligner" if inner.startswith(("merger.", "deepstack_merger_list.")) else "vision"


def language_model(hf: PreTrainedModel) -> PreTrainedModel:
    """The part of a transformers model that reads embeddings and has the blocks of the language model."""
    return hf.model.language_model if hf.config.model_type in VISION_FAMILIES else hf.model
