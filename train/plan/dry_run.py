"""What a run would need and how long it would be, before it is started: `lmms train --dry-run`. No GPU is needed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np

from lmms.configs.errors import ConfigError
from lmms.configs.settings.memory import MemoryConfig, check_activations
from lmms.configs.settings.parallel import check_ranks
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.initial import plan_initial
from lmms.train.checkpoint.pretrained import check_pretrained
from lmms.train.checkpoint.read import read_state
from lmms.train.checkpoint.resume import resumed_state, would_resume
from lmms.train.data.mixture import PERIOD
from lmms.train.data.order import Order
from lmms.train.data.phases import RunPhase, go_on, order_of, run_steps
from lmms.train.plan.advice import Proposal, beside, proposals_of
from lmms.train.plan.cards import Card
from lmms.train.plan.checks import check_output
from lmms.train.plan.estimate import (
    cuda_dtype,
    heaviest,
    largest,
    memory_of,
    parameters_by_part,
    passes_of,
    staged_bytes,
    states_of,
    trace,
)
from lmms.train.plan.open import expected_waiting, open_run, remarks
from lmms.train.watch.metrics import METRICS_NAME
from lmms.train.watch.profile import check_profile

MFU_SUPPOSED = (0.3, 0.5)
"""Share of a card's data-sheet peak that training may reach. Supposed: a run says what it is."""

_RATE_LINES = 100
"""Lines of metrics.jsonl whose median is a run's rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heaviest:
    """The passes that were looked at: those of the packs with most tokens, patches and targets."""

    tokens: int
    patches: int
    images: int
    target_tokens: int


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
    staged: int
    """Bytes of main memory that a checkpoint takes on a rank until it is written."""
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
        return largest(self.memory)

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
    check_ranks(sequence, config.parallel.replicate, ranks)
    device = "cpu" if config.device == "cpu" else "cuda"
    check_activations(config.memory.offload_bytes, device)
    opened = open_run(config, lambda coming: None)
    output = Path(config.output).expanduser()
    check_output(output)
    found = would_resume(config.resume, output)
    state = opened.fresh
    if found:
        state = resumed_state(opened.fresh, read_state(found), found, config.resume_changes)
    initial = plan_initial(config, opened.folder.path, opened.model, lambda act: act(), found, lambda line: None)
    if initial.reads_base and initial.base.path:
        check_pretrained(opened.model.hf, Path(initial.base.path))
    phases = go_on(state.phases, opened.phase, state.step, state.position)
    check_profile(config.profile, device, ranks, state.step, run_steps(config, phases))
    order = order_of(opened.sets, phases[-1])
    trained = {name for name, parameter in opened.model.named_parameters() if parameter.requires_grad}
    brought = set(initial.brought.names.values()) if initial.brought else initial.held - trained
    batches = heaviest(config, opened)
    traced = trace(config, opened, batches, brought)
    memory = memory_of(traced, ranks)
    steps = run_steps(config, phases)
    short = [card.memory for card in cards if largest(memory) > card.memory]
    return DryRun(
        model=str(opened.folder.path),
        parameters=parameters_by_part(opened.model, trained=False),
        trained=parameters_by_part(opened.model, trained=True),
        precision=str(cuda_dtype(config)).removeprefix("torch."),
        optimizer=config.optim.name,
        recompute=_recompute(config.memory),
        ranks=ranks,
        global_packs=order.global_packs,
        micro_packs=config.data.micro_packs,
        passes=passes_of(config, ranks),
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
        staged=staged_bytes(traced, ranks, initial.held),
        cards=list(cards),
        proposals=proposals_of(traced, opened, ranks, batches, brought, min(short), goes_on=bool(found))
        if short
        else [],
        length=_length(config, order, phases, state.step, output),
        waiting=expected_waiting(config, order, ranks // sequence, state.position),
        remarks=[
            *beside(config, states_of(traced, ranks)),
            *remarks(config, order, phases[-1], ranks // sequence, steps, state),
        ],
    )


def _recompute(memory: MemoryConfig) -> str:
    vision = f", vision {memory.vision}" if memory.vision != memory.recompute else ""
    gone = f", up to {memory.offload_activations_gb:g} GB in main memory" if memory.offload_activations_gb else ""
    return f"{memory.recompute}{vision}{gone}"


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


def _measured_rate(output: Path) -> float | None:
    """Tokens a second of the newest steps of the run in this folder, if it has run; not of profiled ones."""
    path = output / METRICS_NAME
    if not path.exists():
        return None
    try:
        # A last line without its end is still being written.
        lines = path.read_text("utf-8").rpartition("\n")[0].splitlines()[-_RATE_LINES:]
        steps = [step for line in lines if not (step := json.loads(line)).get("profiled")]
        rates = [rate for step in steps if (rate := step.get("tokens_per_s")) is not None]
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); move it away to go on") from error
    return median(rates) if rates else None
