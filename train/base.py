"""The weights that a run does not change, and that none of its checkpoints hold."""

from dataclasses import dataclass
from pathlib import Path

from lmms.configs.errors import TrainError
from lmms.train.checkpoint import TrainerState
from lmms.train.model import TrainModel, init_random
from lmms.train.weights import load_pretrained, weights_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """Where the parameters are that no checkpoint of a run holds."""

    path: str
    """A model folder; empty for random numbers, and where every checkpoint holds all."""
    digest: str
    """weights.weights_digest, or the seed in words."""


def fill_base(base: Base, model: TrainModel, seed: int) -> None:
    """Give a model, sharded or not, all its own weights; LoRA's stay as they are."""
    if base.path:
        load_pretrained(model.hf, Path(base.path))
    else:
        init_random(model, seed)


def has_weights(folder: Path, digest: str) -> bool:
    """Whether a folder is there and holds these weights."""
    return folder.is_dir() and any(folder.glob("*.safetensors")) and weights_digest(folder) == digest


def checked_base(state: TrainerState, checkpoint: Path) -> Base:
    """The base of a checkpoint, if it is there as it was; TrainError if not."""
    base = Base(**state.base)
    if base.path and not has_weights(Path(base.path), base.digest):
        raise TrainError(
            f"{checkpoint} holds what was trained on the weights of {base.path}, which are not there any more; put them"
            " back"
        )
    return base
