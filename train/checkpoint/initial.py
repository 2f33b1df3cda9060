"""The weights that a run starts with: its base, the overlay of init_from, and which weights its checkpoints hold.

A checkpoint holds the weights that the run may have changed and those of the overlay. The rest is frozen and read from
the base again: so a checkpoint of LoRA is small.
"""

from collections.abc import Callable, Collection, Mapping
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
from lmms.train.checkpoint.pretrained import fill_rows, load_pretrained, weights_digest
from lmms.train.checkpoint.read import load_checkpoint, model_shapes, read_state
from lmms.train.checkpoint.state import Base, TrainerState, lora_of
from lmms.train.model.build import init_random
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import init_lora
from lmms.train.model.names import is_lora, own_parameters, parameter_name

_FAULTS_SHOWN = 3


def fill_base(base: Base, model: TrainModel, seed: int) -> None:
    """Fill all weights of a model, sharded or not, except LoRA's, which stay as they are."""
    if base.path:
        load_pretrained(model.hf, Path(base.path))
    else:
        init_random(model, seed)


def has_weights(folder: Path, digest: str) -> bool:
    """Whether a folder is there and holds these weights."""
    return folder.is_dir() and any(folder.glob("*.safetensors")) and weights_digest(folder) == digest


def checked_base(state: TrainerState, checkpoint: Path, folder: Path) -> Base:
    """The base of a checkpoint: the old folder, or `folder`. TrainError where neither folder has its weights."""
    base = state.base
    return _moved_base(base, folder, checkpoint, "put them back, or say where they are") if base.path else base


def _moved_base(stored: Base, folder: Path, checkpoint: Path, advice: str) -> Base:
    for place in (folder, Path(stored.path)):
        if has_weights(place, stored.digest):
            return Base(path=str(place.resolve()), digest=stored.digest)
    raise TrainError(
        f"{checkpoint} holds what was trained on the weights of {stored.path}; neither that folder nor {folder}"
        f" has them now; {advice}"
    )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Initial:
    """How a run gets its weights, before it reads the checkpoint that it goes on from."""

    base: Base
    overlay: Overlay | None
    checkpointed: frozenset[str]
    """The parameters of TrainModel that checkpoints hold."""
    reads_base: bool


def plan_initial(
    config: TrainConfig,
    folder: Path,
    model: TrainModel,
    once: Callable[[Callable[[], Base]], Base],
    checkpoint: Path | None,
    say: Callable[[str], None],
) -> Initial:
    """The sources of this model's weights; the model has no memory yet.

    once: calls a function on one rank, and returns its result on all ranks. checkpoint: the run goes on from it; None
    for a run that starts. Raises ConfigError, ModelError or TrainError for weights that do not fit, or that are not
    those that the checkpoint was trained on.
    """
    every = {name for name, _ in model.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if checkpoint is not None:
        if config.model.init_from:
            say(f"model.init_from is not read again: the run goes on from {checkpoint}")
        checkpointed = trained | (model_shapes(checkpoint).keys() & every)
        stored = read_state(checkpoint).base
        reads_base = not every <= checkpointed
        base = once(lambda: _same_base(stored, config, folder, checkpoint)) if reads_base else stored
        return Initial(base=base, overlay=None, checkpointed=frozenset(checkpointed), reads_base=reads_base)
    source = _find_source(config.model.init_from) if config.model.init_from else None
    overlay = None
    if source is not None and source.kind != "model":
        overlay = Overlay(source=source, names=_fitting_names(source, model, config))
        say(f"model.init_from: {len(overlay.names)} tensors of {source.path}{_new_lora(model, overlay.names.values())}")
        if (line := _other_base(source, config)) is not None:
            say(line)
    checkpointed = trained | set(overlay.names.values() if overlay else ())
    reads_base = overlay is None or not every <= set(overlay.names.values())
    base = Base(path="", digest="")
    if reads_base:
        base = once(lambda: _base_of(config, _base_folder(config, folder, source)))
        if source is not None and source.kind == "checkpoint":
            _refuse_other_base(source.path, read_state(source.path).base, base)
        say(f"weights: those of {base.path}" if base.path else f"weights: {base.digest}")
    elif not every <= trained:
        say(
            "every checkpoint will hold all weights, since init_from brings them all; to keep checkpoints small, export"
            " it first and name the folder as model.path"
        )
    return Initial(base=base, overlay=overlay, checkpointed=frozenset(checkpointed), reads_base=reads_base)


def fill_initial(initial: Initial, model: TrainModel, seed: int) -> None:
    """Fill a model, sharded or not, with the weights of its base, the first values of LoRA, and the overlay."""
    if initial.reads_base:
        fill_base(initial.base, model, seed)
    init_lora(model, seed)
    if initial.overlay is None:
        return
    parameters = dict(model.named_parameters())
    targets = {stored: parameters[name] for stored, name in initial.overlay.names.items()}
    source = initial.overlay.source
    if source.kind == "checkpoint":
        load_checkpoint(source.path, targets)
        return
    with safe_open(source.path / ADAPTER_WEIGHTS, framework="pt") as file:
        for stored, parameter in targets.items():
            fill_rows(parameter, file.get_slice(stored))


def _new_lora(model: TrainModel, overlaid: Collection[str]) -> str:
    """A phrase with the number of layers whose LoRA is not in the overlay, if it has LoRA for the others."""
    layers = {name.partition(".lora_")[0] for name, _ in model.named_parameters() if is_lora(name)}
    known = {name.partition(".lora_")[0] for name in overlaid if is_lora(name)}
    return f"; LoRA of {len(layers - known)} of {len(layers)} layers starts anew" if known and layers - known else ""


def _other_base(source: InitialWeights, config: TrainConfig) -> str | None:
    """A line for an adapter that names another base than this run's. Names alone are compared: folders are moved."""
    if source.kind != "adapter":
        return None
    named = read_adapter_config(source.path).get("base_model_name_or_path")
    if named == config.model.path and config.model.init == "pretrained":
        return None
    base = config.model.path if config.model.init == "pretrained" else "random numbers"
    return f"model.init_from: {source.path} was trained on {named}, and this run starts with {base}: are they the same?"


def _base_folder(config: TrainConfig, folder: Path, source: InitialWeights | None) -> Path | None:
    """The folder of the base; None for random numbers."""
    if source is not None and source.kind == "model":
        return source.path
    return None if config.model.init == "random" else folder


def _base_of(config: TrainConfig, folder: Path | None) -> Base:
    if folder is None:
        return Base(path="", digest=f"random numbers of seed {config.seed}")
    return Base(path=str(folder.resolve()), digest=weights_digest(folder))


def _same_base(stored: Base, config: TrainConfig, folder: Path, checkpoint: Path) -> Base:
    """The base of a run that goes on: the old folder, or that of model.path now."""
    if not stored.path:
        _refuse_other_base(checkpoint, stored, _base_of(config, None))
        return stored
    return _moved_base(stored, folder, checkpoint, "put them back, or start in another output folder")


def _refuse_other_base(path: Path, stored: Base, now: Base) -> None:
    if stored.digest != now.digest:
        raise TrainError(
            f"{path} holds what was trained on the weights of {stored.path or stored.digest}, this run starts with"
            f" {now.path or now.digest}; set model.path to the former, or export the checkpoint and name that folder"
        )


def _find_source(setting: str) -> InitialWeights:
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


def _fitting_names(source: InitialWeights, model: TrainModel, config: TrainConfig) -> dict[str, str]:
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
