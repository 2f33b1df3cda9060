"""The weights that a run starts with: its base, the overlay of init_from, and which weights its checkpoints hold.

A checkpoint holds the weights that the run may have changed and those of the overlay. The rest is frozen and read from
the base again: so a checkpoint of LoRA is small.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lmms.configs.errors import TrainError
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.overlay import (
    InitialWeights,
    Overlay,
    fill_overlay,
    find_source,
    fitting_names,
    new_lora,
    other_base,
)
from lmms.train.checkpoint.pretrained import load_pretrained, weights_digest
from lmms.train.checkpoint.read import model_shapes, read_state
from lmms.train.checkpoint.state import Base, TrainerState
from lmms.train.model.build import init_random
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import init_lora
from lmms.train.model.names import fixed_names, parameter_name


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
    if {name for name in every if parameter_name(name) not in fixed_names(model)} <= trained:
        # What no run trains is held too: then the base is never read again.
        trained = every
    if checkpoint is not None:
        if config.model.init_from:
            say(f"model.init_from is not read again: the run goes on from {checkpoint}")
        checkpointed = trained | (model_shapes(checkpoint).keys() & every)
        stored = read_state(checkpoint).base
        reads_base = not every <= checkpointed
        base = once(lambda: _same_base(stored, config, folder, checkpoint)) if reads_base else stored
        return Initial(base=base, overlay=None, checkpointed=frozenset(checkpointed), reads_base=reads_base)
    source = find_source(config.model.init_from) if config.model.init_from else None
    overlay = None
    if source is not None and source.kind != "model":
        overlay = Overlay(source=source, names=fitting_names(source, model, config))
        say(f"model.init_from: {len(overlay.names)} tensors of {source.path}{new_lora(model, overlay.names.values())}")
        if (line := other_base(source, config)) is not None:
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
    if initial.overlay is not None:
        fill_overlay(initial.overlay, model)


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
