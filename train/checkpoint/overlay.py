"""The overlay of a run: tensors of a checkpoint or of an adapter that model.init_from lays over the base."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open

from lmms.configs.contract.model_folder import TRAIN_FILES, resolve_model
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.settings.train import TrainConfig
from lmms.configs.words import counted
from lmms.train.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, parameter_of_key, read_adapter_config
from lmms.train.checkpoint.files import COMPLETE_NAME, CONFIG_NAME
from lmms.train.checkpoint.keep import choose_checkpoint
from lmms.train.checkpoint.pretrained import fill_rows
from lmms.train.checkpoint.read import load_checkpoint, model_shapes, read_state
from lmms.train.checkpoint.state import lora_of
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import is_lora, own_parameters, parameter_name

_FAULTS_SHOWN = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class InitialWeights:
    """The folder that init_from names, and its kind."""

    path: Path
    kind: Literal["checkpoint", "adapter", "model"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlay:
    """The tensors that init_from lays over the base."""

    source: InitialWeights
    names: Mapping[str, str]
    """Stored tensor -> parameter of TrainModel."""


def find_source(setting: str) -> InitialWeights:
    """The source that a setting of model.init_from names. ConfigError where nothing there can be read."""
    path = Path(setting).expanduser()
    if (path / COMPLETE_NAME).is_file() or (path / CONFIG_NAME).is_file():
        return InitialWeights(path=choose_checkpoint(path)[0], kind="checkpoint")
    if (path / ADAPTER_CONFIG).is_file():
        return InitialWeights(path=path, kind="adapter")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigError(
            f"model.init_from {setting!r} is no checkpoint ({COMPLETE_NAME}), no output of a run ({CONFIG_NAME}), no"
            f" PEFT adapter ({ADAPTER_CONFIG}) and no model folder (config.json)"
        )
    return InitialWeights(path=resolve_model(setting, TRAIN_FILES), kind="model")


def fitting_names(source: InitialWeights, model: TrainModel, config: TrainConfig) -> dict[str, str]:
    """Stored tensor -> parameter of TrainModel. TrainError that names the first tensors that do not fit."""
    shapes, settings = _stored(source)
    first_names = own_parameters(model)
    parameters = dict(model.named_parameters())
    names = {parameter_name(name): name for name in parameters}
    lora = any(map(is_lora, names))
    if any(map(is_lora, shapes)) and not lora:
        raise TrainError(
            f"model.init_from {source.path} holds LoRA, but train gives this run none; set train: {{llm: lora}}, or"
            " merge it first: lmms export CKPT DIR --merged, and name DIR as model.path"
        )
    faults, targets = [], {}
    for stored, shape in shapes.items():
        key = stored.removeprefix("model.") if source.kind == "checkpoint" else parameter_of_key(stored)
        key = parameter_name(key)
        target = names.get(first_names.get(key, key))
        if target is None:
            faults.append(f"{stored} is unexpected")
        elif list(parameters[target].shape) != shape:
            faults.append(f"{stored} has shape {shape}, expected {list(parameters[target].shape)}")
        else:
            targets[stored] = target
    rank, alpha = settings
    reasons = []
    if lora and any(map(is_lora, shapes)) and (rank, alpha) != (config.lora.rank, config.lora.alpha):
        reasons = [f"its LoRA has rank {rank} and alpha {alpha}, this run {config.lora.rank} and {config.lora.alpha}"]
    if faults:
        more = f", ... ({counted(len(faults), 'tensor')} in all)" if len(faults) > _FAULTS_SHOWN else ""
        reasons.append("; ".join(faults[:_FAULTS_SHOWN]) + more)
    if reasons:
        raise TrainError(f"model.init_from {source.path} does not fit this run: {'; '.join(reasons)}")
    return targets


def _stored(source: InitialWeights) -> tuple[dict[str, list[int]], tuple[int, int | float]]:
    """Shapes of the stored tensors, by name; and the rank and alpha of the stored LoRA."""
    if source.kind == "checkpoint":
        lora = lora_of(read_state(source.path))
        shapes = {f"model.{name}": shape for name, shape in model_shapes(source.path).items()}
        return shapes, (lora.rank, lora.alpha)
    settings = read_adapter_config(source.path)
    try:
        with safe_open(source.path / ADAPTER_WEIGHTS, framework="pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    except (FileNotFoundError, SafetensorError) as error:
        raise TrainError(f"{source.path / ADAPTER_WEIGHTS} cannot be read ({error}); copy the folder again") from error
    return shapes, (settings["r"], settings["lora_alpha"])


def fill_overlay(overlay: Overlay, model: TrainModel) -> None:
    """Fill the overlaid parameters of a model, sharded or not."""
    parameters = dict(model.named_parameters())
    targets = {stored: parameters[name] for stored, name in overlay.names.items()}
    source = overlay.source
    if source.kind == "checkpoint":
        load_checkpoint(source.path, targets)
        return
    with safe_open(source.path / ADAPTER_WEIGHTS, framework="pt") as file:
        for stored, parameter in targets.items():
            fill_rows(parameter, file.get_slice(stored))


def new_lora(model: TrainModel, overlaid: Collection[str]) -> str:
    """A phrase with the number of layers whose LoRA is not in the overlay, if it has LoRA for the others."""
    layers = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if is_lora(name)}
    known = {name.partition(".lora_")[0] for name in overlaid if is_lora(name)}
    return f"; LoRA of {len(layers - known)} of {len(layers)} layers starts anew" if known and layers - known else ""


def other_base(source: InitialWeights, config: TrainConfig) -> str | None:
    """A line for an adapter that names another base than this run's. Names alone are compared: folders are moved."""
    if source.kind != "adapter":
        return None
    named = read_adapter_config(source.path).get("base_model_name_or_path")
    if named == config.model.path and config.model.init == "pretrained":
        return None
    base = config.model.path if config.model.init == "pretrained" else "random numbers"
    return f"model.init_from: {source.path} was trained on {named}, and this run starts with {base}: are they the same?"
