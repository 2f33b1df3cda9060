"""trainer.json: the state of a run without its tensors, as typed values and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmms.configs.by_part import Part
from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.train import How
from lmms.train.data.phases import RunPhase, phase_from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """The source of the parameters that no checkpoint of a run holds."""

    path: str = ""
    """A model folder; empty for random numbers, and where every checkpoint holds all parameters."""
    digest: str = ""
    """Value of weights_digest, or the seed in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """The measure of the best checkpoint: values of two measures cannot be compared."""

    metric: str
    greater: bool
    """Whether a greater value is better."""
    shards: str
    """Hash of the index.json of the shards for eval_loss; empty for the training loss."""
    loss_weight: str
    """The setting loss_weight for the training loss; empty for eval_loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best checkpoint so far."""

    step: int
    value: float
    measure: Measure


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """The state of a run without its tensors."""

    step: int
    """Optimizer steps taken."""
    position: int
    """Packs trained; with the order's identity (seed ... costs) and the phases it tells which packs come next."""
    seed: int
    order: str
    """Value of ORDER_VERSION."""
    shards: tuple[str, ...]
    """xxh3 of the index.json of each set, which names the hash of every shard."""
    group_packs: int
    costs: str
    """Digest of the cost model, see costs_digest."""
    fingerprints: Mapping[str, str]
    """tokenizer, template, vision and packing of the shards."""
    phases: tuple[RunPhase, ...]
    """The oldest first."""
    global_packs: int
    model: str
    """The model folder, as an absolute path."""
    base: Base
    """The weights that checkpoints do not hold."""
    zero_steps: Mapping[Part, int]
    """Trained part -> its steps in a row without gradient."""
    skipped: int
    """Steps in a row, up to this step, whose update was left out because a value was not finite."""
    best: Best | None
    config: Mapping[str, Any]
    """The settings in the version of lmms that ran: to compare and to show, see lora_of and train_of."""
    chat_template: str | None = None
    """The chat template of the shards, where they were built with another than the model's."""


def train_of(state: TrainerState) -> dict[str, How]:
    """The setting `train` of a run: what is trained, and how."""
    return dict(state.config["train"])


def lora_of(state: TrainerState) -> LoraConfig:
    """The section `lora` of a run."""
    settings: dict[str, Any] = dict(state.config["lora"])
    # JSON has no tuples.
    tuples = {name: tuple(value) for name, value in settings.items() if isinstance(value, list)}
    return LoraConfig(**{**settings, **tuples})


def best_to_dict(best: Best) -> dict[str, Any]:
    """{step, value, metric, greater, shards, loss_weight}."""
    return {"step": best.step, "value": best.value, **asdict(best.measure)}


def state_to_dict(state: TrainerState) -> dict[str, Any]:
    """The content of trainer.json."""
    return {**asdict(state), "best": best_to_dict(state.best) if state.best else None}


def state_from_dict(body: Mapping[str, Any]) -> TrainerState:
    """Inverse of state_to_dict, after JSON too. TypeError, LookupError or AttributeError for another mapping."""
    best = body["best"]
    if best is not None:
        measure = {name: value for name, value in best.items() if name not in ("step", "value")}
        best = Best(step=best["step"], value=best["value"], measure=Measure(**measure))
    phases = tuple(phase_from_json(phase) for phase in body["phases"])
    typed = {"shards": tuple(body["shards"]), "phases": phases, "base": Base(**body["base"]), "best": best}
    return TrainerState(**{**body, **typed})
