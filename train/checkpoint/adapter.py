"""A PEFT adapter folder: adapter_config.json and adapter_model.safetensors, which transformers loads too.

    base_model.model.<layer>.lora_A.weight   LoRA
    base_model.model.<module>.<parameter>    a module in modules_to_save, that is, one that was trained in full
    base_model.model.<layer>.base_layer.bias a bias that was trained, in a layer with LoRA

vLLM takes adapters that are LoRA alone; it can serve other adapters merged.
"""

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lmms.configs.errors import TrainError
from lmms.configs.files import mode_by_umask
from lmms.configs.settings.lora import LoraConfig
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import ADAPTER, peft_config
from lmms.train.model.names import is_lora, parameter_name

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_OTHER_LORA = (
    *("use_dora", "use_rslora", "use_qalora", "use_bdlora", "lora_bias", "rank_pattern", "alpha_pattern"),
    *("target_parameters", "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "arrow_config"),
)
"""PEFT's settings that make LoRA add something else than alpha / r * B A x."""
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base as it is."""


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The settings of an adapter. TrainError for an adapter that is not plain LoRA."""
    file = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind, rank, alpha = settings["peft_type"], int(settings["r"]), settings["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{file} is damaged ({type(error).__name__}: {error}); copy the folder again") from error
    if others := [name for name in _OTHER_LORA if settings.get(name)]:
        raise TrainError(f"{file} sets {', '.join(others)}, which a run does not have; merge it with PEFT first")
    if (start := settings.get("init_lora_weights")) not in _STARTS:
        raise TrainError(
            f"{file} has init_lora_weights {start!r}, which changes the base too; convert it with PEFT"
            " (path_initial_model_for_weight_conversion), or merge it"
        )
    if kind != "LORA":
        raise TrainError(f"{file} is of peft_type {kind}, expected LORA; merge it with PEFT first")
    return {**settings, "r": rank, "lora_alpha": alpha}


def parameter_of_key(key: str) -> str:
    """The parameter's name in TrainModel, without `hf.`, for a key of an adapter's safetensors."""
    name = key.removeprefix(_PREFIX)
    return f"{name.removesuffix('.weight')}.{ADAPTER}.weight" if is_lora(name) else name


def write_adapter(
    model: TrainModel, checkpointed: Collection[str], lora: LoraConfig, base: str, dtype: torch.dtype, folder: Path
) -> None:
    """Write a model's LoRA and its other `checkpointed` parameters (names in TrainModel) into a folder.

    base: folder or hub id of the model that the adapter belongs on. If a parameter of a module is checkpointed, all its
    parameters are written: PEFT replaces whole modules. TrainError for a weight under LoRA that is not base's.
    """
    tensors: dict[str, torch.Tensor] = {}
    layers, modules = [], []
    to_write = {parameter for name, parameter in model.named_parameters() if name in checkpointed}
    for name, module in model.named_modules():
        parameters, place = dict(module.named_parameters(recurse=False)), name.removeprefix("hf.")
        if is_lora(name):
            place = place.removesuffix(f".{ADAPTER}")
        elif name.endswith(".base_layer"):
            layers.append(parameter_name(name))
            if module.weight in to_write:
                raise TrainError(
                    f"the weight of {layers[-1]} is not that of {base}, which no adapter can say; export --merged"
                )
            parameters = {key: parameter for key, parameter in parameters.items() if parameter in to_write}
        elif to_write.isdisjoint(parameters.values()):
            continue
        else:
            modules.append(place)
        tensors |= {
            f"{_PREFIX}{place}.{key}": value.detach().to(dtype).contiguous() for key, value in parameters.items()
        }
    settings = peft_config(layers, lora)
    settings.target_modules = sorted(layers)
    settings.modules_to_save, settings.base_model_name_or_path, settings.inference_mode = modules or None, base, True
    settings.save_pretrained(str(folder))
    # Tied weights are written under both names: PEFT makes two weights of them.
    with mode_by_umask(folder / ADAPTER_WEIGHTS):
        save_file({key: value.clone() for key, value in tensors.items()}, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def unlike(folder: Path, model: TrainModel) -> list[str]:
    """The tensors of an adapter folder that PEFT loads wrong, and the tensors that it misses there.

    model: the same model on the meta device, without LoRA; PEFT makes its model from this model.
    """
    import peft

    # Memory that nothing is written to takes no room.
    model.to_empty(device="cpu")
    with warnings.catch_warnings():
        # PEFT 0.19 uses an old name of transformers; tied weights are in the folder under both names.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        read = peft.PeftModel.from_pretrained(
            model.hf, folder, torch_device="cpu", autocast_adapter_dtype=False, low_cpu_mem_usage=True
        )
    loaded, adapters = {}, set()
    for name, parameter in read.named_parameters(remove_duplicate=False):
        key = name.replace(f".modules_to_save.{ADAPTER}.", ".")
        if is_lora(name):
            key = key.replace(f".{ADAPTER}.", ".")
        if key != name:
            adapters.add(key)
        loaded[key] = parameter
    written = load_file(folder / ADAPTER_WEIGHTS)
    return sorted(
        [*(adapters - written.keys()), *(written.keys() - loaded.keys())]
        + [key for key in loaded.keys() & written.keys() if not torch.equal(loaded[key], written[key])]
    )
