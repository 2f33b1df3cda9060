"""What a run would need and how long it would be, before it is started: `lmms train --dry-run`. No GPU is needed."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import torch

from lmms.configs.errors import ConfigError
from lmms.configs.optim import MOMENTUM
from lmms.configs.parallel import check_sequence_ranks
from lmms.configs.train import TrainConfig
from lmms.train.batch import Batch, make_batch
from lmms.train.cards import Card
from lmms.train.checkpoint import read_state
from lmms.train.initial import plan_initial
from lmms.train.memory import gathered_bytes, rank_memory, state_bytes
from lmms.train.memory_trace import Moment, tensors_in, trace_pass, units
from lmms.train.metrics import METRICS_NAME
from lmms.train.mixture import PERIOD
from lmms.train.model import TrainModel, keep_in, part_of
from lmms.train.opened import Opened, expected_waiting, make_model, open_run, remarks
from lmms.train.order import Order
from lmms.train.parallel import compute_dtype
from lmms.train.phases import RunPhase, go_on, order_of, phase_from_json, run_steps
from lmms.train.resume import resumed_state, would_resume
from lmms.train.rules import bytes_by_rule
from lmms.train.stream import PackReader
from lmms.train.weights import check_pretrained

MFU_SUPPOSED = (0.3, 0.5)
"""Share of a card's data-sheet peak that training may reach. Supposed: a run says what it is."""

_RATE_LINES = 100
"""Lines of metrics.jsonl whose median is a run's rate."""

_MORE_RANKS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Heaviest:
    """The passes that were looked at: those of the packs with most tokens, patches and targets."""

    tokens: int
    patches: int
    images: int
    target_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A change of the settings, and what a rank would need then."""

    change: str
    total: int
    """Bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Length:
    """How long the run is. Operations are strict, see flops.py."""

    steps: int
    """Still to be taken."""
    tokens_a_step: float
    steps_an_epoch: float
    """An epoch is one pass over the shards, or over the mixture."""
    tokens_an_epoch: float
    flops_a_step: float
    flops_an_epoch: float
    tokens_per_s: float | None
    """Of all ranks, measured by the run in `output`; None where it has not run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """All that `lmms train --dry-run` says."""

    model: str
    parameters: dict[str, int]
    """Part -> its parameters."""
    trained: dict[str, int]
    precision: str
    optimizer: str
    """optim.name."""
    recompute: str
    ranks: int
    global_packs: int
    micro_packs: int
    passes: int
    """Of a step: forward and backward passes of each rank."""
    shards: int
    packs: int
    resumes: str | None
    """The checkpoint that the run would go on from."""
    heaviest: Heaviest
    memory: list[dict[str, int]]
    """Bytes of each rank by component, see memory.COMPONENTS."""
    cards: list[Card]
    proposals: list[Proposal]
    """What would need less; empty where every card has enough."""
    length: Length
    waiting: float
    """Time that ranks lose by waiting for one another, as a share of the time without."""
    remarks: list[str]

    @property
    def total(self) -> int:
        """Bytes of the rank that needs most."""
        return max(sum(components.values()) for components in self.memory)

    @property
    def largest(self) -> str:
        """The component that needs most, on that rank."""
        components = max(self.memory, key=lambda found: sum(found.values()))
        return max(components, key=lambda name: components[name])

    def hours(self, card: Card) -> tuple[float, float] | None:
        """Of the whole run at the higher and the lower of MFU_SUPPOSED; None for a card of unknown speed."""
        if card.peak_flops is None:
            return None
        slowest, fastest = (
            self.length.steps * self.length.flops_a_step / (self.ranks * card.peak_flops * mfu) / 3600
            for mfu in MFU_SUPPOSED
        )
        return fastest, slowest


def dry_run(config: TrainConfig, ranks: int, cards: Sequence[Card]) -> DryRun:
    """What a run on so many ranks would need, on GPUs, against these cards. Reads the heaviest packs; writes nothing.

    Raises what the run itself would raise before its first step, for settings, shards, model, weights and checkpoints.
    """
    sequence = config.parallel.sequence
    check_sequence_ranks(sequence, ranks)
    opened = open_run(config, lambda coming: None)
    output = Path(config.output).expanduser()
    found = would_resume(config.resume, output)
    state = opened.fresh
    if found:
        state = resumed_state(opened.fresh, read_state(found), found, config.resume_changes)
    initial = plan_initial(config, opened.folder.path, opened.model, lambda act: act(), found, lambda line: None)
    if initial.reads_base and initial.base.path:
        check_pretrained(opened.model.hf, Path(initial.base.path))
    phases = go_on([phase_from_json(phase) for phase in state.phases], opened.phase, state.step, state.position)
    order = order_of(opened.sets, phases[-1])
    trained = {name for name, parameter in opened.model.named_parameters() if parameter.requires_grad}
    brought = set(initial.brought.names.values()) if initial.brought else initial.held - trained
    batches = _heaviest(opened, config.data.micro_packs)
    traced = _trace(config, opened, batches, brought)
    memory = _memory(traced, ranks)
    steps = run_steps(config, phases)
    total = max(sum(components.values()) for components in memory)
    short = [card.memory for card in cards if total > card.memory]
    return DryRun(
        model=str(opened.folder.path),
        parameters=_by_part(opened.model, trained=False),
        trained=_by_part(opened.model, trained=True),
        precision=str(_dtype(config)).removeprefix("torch."),
        optimizer=config.optim.name,
        recompute=config.model.recompute,
        ranks=ranks,
        global_packs=order.global_packs,
        micro_packs=config.data.micro_packs,
        passes=_passes(config, ranks),
        shards=sum(len(dataset.shards) for dataset in opened.sets.datasets),
        packs=len(order.costs),
        resumes=str(found) if found else None,
        heaviest=Heaviest(
            tokens=max(batch.input_ids.shape[1] for batch in batches),
            patches=max(len(batch.vision.patches) if batch.images and batch.vision else 0 for batch in batches),
            images=max(batch.images for batch in batches),
            target_tokens=max(len(batch.labels) for batch in batches),
        ),
        memory=memory,
        cards=list(cards),
        proposals=_proposals(traced, opened, ranks, batches, brought, min(short)) if short else [],
        length=_length(config, order, phases, state.step, output),
        waiting=expected_waiting(config, order, ranks // sequence, state.position),
        remarks=[*_shared_out(config), *remarks(config, order, phases[-1], ranks // sequence, steps, state)],
    )


def _shared_out(config: TrainConfig) -> list[str]:
    sequence = config.parallel.sequence
    if sequence == 1:
        return []
    return [f"the activations are those of whole packs; with parallel.sequence {sequence} a rank keeps a part of them"]


def _length(config: TrainConfig, order: Order, phases: Sequence[RunPhase], step: int, output: Path) -> Length:
    phase = phases[-1]
    of_sets = [order.costs[start:end].mean(dtype=np.float64) for start, end in pairwise(order.first_packs)]
    # Of a mixture's packs, each set has its share of the turns.
    of_pack = sum(float(cost) * share.turns / PERIOD for cost, share in zip(of_sets, phase.sets, strict=True))
    return Length(
        steps=max(run_steps(config, phases) - step, 0),
        tokens_a_step=phase.pack_tokens * phase.global_packs,
        steps_an_epoch=phase.pass_packs / phase.global_packs,
        tokens_an_epoch=phase.pack_tokens * phase.pass_packs,
        flops_a_step=of_pack * phase.global_packs,
        flops_an_epoch=of_pack * phase.pass_packs,
        tokens_per_s=_measured_rate(output),
    )


def _passes(config: TrainConfig, ranks: int) -> int:
    return -(-config.data.global_packs // (ranks // config.parallel.sequence * config.data.micro_packs))


def _heaviest(opened: Opened, micro_packs: int) -> list[Batch]:
    """Real batches that bound those of the run: the packs with most tokens, with most patches, with most targets."""
    sets = opened.sets
    patches = np.concatenate([sidecar.patches for sidecar in sets.sidecars])
    columns = (sets.tokens, patches, sets.target_tokens)
    chosen: dict[tuple[int, ...], None] = {}
    for first in range(len(columns)):
        # Of packs that are equal in this column, those that are heavier in the next ones.
        keys = [columns[(first + i) % len(columns)] for i in reversed(range(len(columns)))]
        top = np.lexsort(keys)[::-1][:micro_packs].tolist()
        # A pass over fewer packs than there are could hold one of them twice.
        chosen[tuple((top * micro_packs)[:micro_packs])] = None
    reader = PackReader(sets.datasets)
    batches = []
    for numbers in chosen:
        places = [sets.place(number) for number in numbers]
        batches.append(make_batch([reader.read(place) for place in places], opened.recipe, places))
    reader.close()
    return batches


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Traced:
    """Settings that change what a pass needs, and what that is. The number of ranks is not one of them."""

    config: TrainConfig
    model: TrainModel
    passes: list[tuple[list[Moment], int]]
    """Of each of the heaviest batches: its moments, and its own bytes."""


def _trace(config: TrainConfig, opened: Opened, batches: Sequence[Batch], brought: Collection[str]) -> _Traced:
    dtype = _dtype(config)
    passes = [
        (trace_pass(_model(config, opened, brought), batch, dtype), sum(tensor.nbytes for tensor in tensors_in(batch)))
        for batch in batches
    ]
    return _Traced(config=config, model=_model(config, opened, brought), passes=passes)


def _memory(traced: _Traced, ranks: int) -> list[dict[str, int]]:
    """Bytes of each rank by component, at its peak in the worst of the passes."""
    gathered = gathered_bytes(units(traced.model), _dtype(traced.config).itemsize, ranks)
    accumulates = _passes(traced.config, ranks) > 1
    parameters = list(traced.model.parameters())
    optimizer_bytes = bytes_by_rule(traced.config.optim.name, traced.model)
    found = []
    for rank in range(ranks):
        states = state_bytes(parameters, rank, ranks, optimizer_bytes)
        of_passes = [rank_memory(states, gathered, *one, accumulates=accumulates) for one in traced.passes]
        found.append(max(of_passes, key=lambda components: sum(components.values())))
    return found


def _model(config: TrainConfig, opened: Opened, brought: Collection[str]) -> TrainModel:
    """A model on the meta device as the settings want it: to trace a pass spoils one.

    brought: parameters that are kept in fp32 though they may be frozen, see initial.py.
    """
    model = make_model(config, opened.folder.path)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    keep_in(model, _dtype(config), {*trained, *brought})
    return model


def _dtype(config: TrainConfig) -> torch.dtype:
    return compute_dtype(config.model.precision, torch.device("cuda"))


def _proposals(
    traced: _Traced, opened: Opened, ranks: int, batches: Sequence[Batch], brought: Collection[str], enough: int
) -> list[Proposal]:
    """Changes of one setting, of all those together, and then of the number of ranks, until `enough` bytes are."""

    def needed(one: _Traced, on_ranks: int) -> int:
        return max(sum(components.values()) for components in _memory(one, on_ranks))

    config = traced.config
    total = needed(traced, ranks)
    together, changes = config, list[tuple[str, TrainConfig]]()
    if config.model.recompute == "none":
        together = replace(together, model=replace(config.model, recompute="full"))
        changes.append(("model.recompute: full", together))
    if config.data.micro_packs > 1:
        fewer = replace(config.data, micro_packs=1)
        together = replace(together, data=fewer)
        changes.append(("data.micro_packs: 1", replace(config, data=fewer)))
    if len(changes) > 1:
        changes.append((" and ".join(change for change, _ in changes), together))
    found, last = [], traced
    for change, changed in changes:
        same = changed.data.micro_packs == config.data.micro_packs
        last = _trace(changed, opened, batches if same else _heaviest(opened, changed.data.micro_packs), brought)
        found.append(Proposal(change=change, total=needed(last, ranks)))
    so_far = f"{changes[-1][0]} and " if changes else ""
    for times in _MORE_RANKS:
        if min((proposal.total for proposal in found), default=total) <= enough:
            break
        found.append(Proposal(change=f"{so_far}{ranks * times} ranks", total=needed(last, ranks * times)))
    vision = config.train.get("vision", config.train["default"])
    if (
        vision == "full"
        and not config.lora.modules_to_save
        and {"vision", "llm"} <= _by_part(traced.model, trained=True).keys()
    ):
        changed = replace(config, train={**config.train, "vision": "frozen"})
        total_then = needed(_trace(changed, opened, batches, brought), ranks)
        found.append(Proposal(change="train.vision: frozen", total=total_then))
    smaller = replace(traced, config=replace(config, optim=replace(config.optim, name="adamw-8bit", momentum=MOMENTUM)))
    found.append(Proposal(change="optim.name: adamw-8bit", total=needed(smaller, ranks)))
    return [proposal for proposal in found if proposal.total < total]


def _by_part(model: TrainModel, *, trained: bool) -> dict[str, int]:
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained:
            parts[part_of(name)] = parts.get(part_of(name), 0) + parameter.numel()
    return parts


def _measured_rate(output: Path) -> float | None:
    """Tokens a second of the newest steps of the run in this folder, if it has run."""
    path = output / METRICS_NAME
    if not path.exists():
        return None
    try:
        # A last line without its end is still being written.
        lines = path.read_text("utf-8").rpartition("\n")[0].splitlines()[-_RATE_LINES:]
        rates = [rate for line in lines if (rate := json.loads(line).get("tokens_per_s")) is not None]
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); move it away to go on") from error
    return median(rates) if rates else None
