"""trainer.json: all of a run that is not a tensor, as typed values and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lmms.configs.by_part import Part
from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.train import How
from lmms.train.data.phases import RunPhase, phase_from_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """Where the parameters are that no checkpoint of a run holds."""

    path: str = ""
    """A model folder; empty for random numbers, and where every checkpoint holds all."""
    digest: str = ""
    """pretrained.weights_digest, or the seed in words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What the best checkpoint is the best by: values of two measures cannot be compared."""

    metric: str
    greater: bool
    """Whether a greater value is better."""
    shards: str
    """What eval_loss is taken on: the hash of an index.json; empty for the training loss."""
    loss_weight: str
    """What the training loss is weighted by; empty for eval_loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best checkpoint so far."""

    step: int
    value: float
    measure: Measure


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerState:
    """All of a run that is not a tensor."""

    step: int
    """Optimizer steps taken."""
    position: int
    """Packs trained; with the order's identity (seed ... costs) and the phases it says which come next."""
    seed: int
    order: str
    """order.ORDER_VERSION."""
    shards: tuple[str, ...]
    """For each set the xxh3 of its index.json, which names the hash of every shard."""
    group_packs: int
    costs: str
    """Digest of what makes up the cost of a pack, see sets.costs_digest."""
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
    """Steps in a row without gradient, of each trained part."""
    skipped: int
    """Steps in a row, up to this one, whose update was left out since something was not finite."""
    best: Best | None
    config: Mapping[str, Any]
    """The settings as the version of lmms that ran had them: to compare and to say, see lora_of and train_of."""


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
    """What trainer.json holds."""
    return {**asdict(state), "best": best_to_dict(state.best) if state.best else None}


def state_from_dict(body: Mapping[str, Any]) -> TrainerState:
    """Inverse of state_to_dict, also after JSON. TypeError, LookupError or AttributeError for another mapping."""
    best = body["best"]
    if best is not None:
        measure = {name: value for name, value in best.items() if name not in ("step", "value")}
        best = Best(step=best["step"], value=best["value"], measure=Measure(**measure))
    phases = tuple(phase_from_json(phase) for phase in body["phases"])
    typed = {"shards": tuple(body["shards"]), "phases": phases, "base": Base(**body["base"]), "best": best}
    return TrainerState(**{**body, **typed})
