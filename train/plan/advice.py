"""What would need less memory: for a dry run whose cards are too small, and a run that has had too little."""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lmms.configs.nested import flat
from lmms.configs.settings.memory import MemoryConfig
from lmms.configs.settings.optim import MOMENTUM
from lmms.configs.settings.train import TrainConfig
from lmms.train.batch.batch import Batch
from lmms.train.data.shards import Place
from lmms.train.parallel.share import WHOLE
from lmms.train.plan.estimate import (
    Traced,
    batch_of,
    cuda_dtype,
    heaviest,
    largest,
    memory_of,
    parameters_by_part,
    states_of,
    trace,
    traced_model,
)
from lmms.train.plan.memory import ALLOWANCE_BYTES, States
from lmms.train.plan.open import Opened
from lmms.train.plan.trace import offloaded_bytes


def savings(config: TrainConfig, *, keeps_vision: bool, offload_gb: int) -> list[tuple[str, TrainConfig]]:
    """(change, the settings with it), those first that cost least time.

    To shard what is held whole costs traffic, a pass over fewer packs next to nothing. To recompute elementwise costs
    what reading its inputs costs, the vision tower in full one forward pass of it, everything in full a third of the
    step. What blocks keep then is little enough to go to main memory unnoticed. Last, the strongest of these with the
    changes of other sections.
    keeps_vision: whether the vision tower keeps anything. offload_gb: GB of main memory that take all that blocks keep
    with `in_full`.
    """
    now = config.memory
    ladder = [replace(now, recompute="elementwise")] if now.recompute == "none" else [now]
    if keeps_vision:
        ladder.append(replace(ladder[-1], recompute_vision="full"))
    full = in_full(now)
    ladder += [full, replace(full, offload_activations_gb=max(now.offload_activations_gb, float(offload_gb)))]
    # A setting that says the same in other words is no change.
    same = {now, replace(now, recompute_vision=now.vision)}
    changed = [replace(config, memory=memory) for memory in dict.fromkeys(ladder) if memory not in same]
    wanted = (("parallel", "reshard", True), ("parallel", "replicate", 1), ("data", "micro_packs", 1))
    others = [(section, name, value) for section, name, value in wanted if _value(config, section, name) != value]
    apart, together = [_with(config, *other) for other in others], changed[-2:] or [config]
    for other in others:
        together = [_with(one, *other) for one in together]
    # Of one change alone there is nothing together.
    found = [*apart, *changed, *(together if others and len(others) + len(changed) > 1 else ())]
    return [(_words(config, one), one) for one in found]


def in_full(memory: MemoryConfig) -> MemoryConfig:
    """Everything recomputed in full."""
    return replace(memory, recompute="full", recompute_vision=memory.recompute_vision and "full")


def _value(config: TrainConfig, section: str, name: str) -> Any:
    return getattr(getattr(config, section), name)


def _with(config: TrainConfig, section: str, name: str, value: Any) -> TrainConfig:
    changes: dict[str, Any] = {section: replace(getattr(config, section), **{name: value})}
    return replace(config, **changes)


def _words(before: TrainConfig, after: TrainConfig) -> str:
    """Each key that differs, with its new value as a run file has it."""
    was, now = flat(asdict(before), "."), flat(asdict(after), ".")
    return " and ".join(f"{key}: {_text(value)}" for key, value in now.items() if was[key] != value)


def _text(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.lower() if isinstance(value, bool) else text


_WORTH_IT = 0.01
"""Share of what a rank needs, but for the fixed allowance, that a change has to save."""
_MORE_RANKS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A change of the settings, and what a rank would need then."""

    change: str
    total: int
    """Bytes."""
    anew: bool = False
    """A checkpoint cannot go on with it: the run would have to start anew, in another output."""


def proposals_of(
    traced: Traced,
    opened: Opened,
    ranks: int,
    batches: Sequence[Batch],
    brought: Collection[str],
    enough: int,
    *,
    goes_on: bool,
) -> list[Proposal]:
    """The changes of savings.py, and then of the number of ranks too, until `enough` bytes are.

    goes_on: there is a checkpoint to go on from.
    """

    def needed(one: Traced, on_ranks: int) -> int:
        return largest(memory_of(one, on_ranks))

    config, trained = traced.config, parameters_by_part(traced.model, trained=True)
    total = needed(traced, ranks)
    full = replace(config, memory=in_full(config.memory))
    kept = max(offloaded_bytes(traced_model(full, opened, brought), batch, cuda_dtype(config)) for batch in batches)
    changes = savings(config, keeps_vision="vision" in trained, offload_gb=-(-kept // 10**9))
    least = total - _WORTH_IT * (total - ALLOWANCE_BYTES)
    found: list[Proposal] = []
    so_far, last = "", traced
    for change, changed in changes:
        same = changed.data.micro_packs == config.data.micro_packs
        tried = trace(changed, opened, batches if same else heaviest(changed, opened), brought)
        proposal = Proposal(change=change, total=needed(tried, ranks))
        if proposal.total <= least:
            found.append(proposal)
            # More ranks come on top of the strongest one that helps.
            so_far, last = f"{change} and ", tried
    for times in _MORE_RANKS:
        if min((proposal.total for proposal in found), default=total) <= enough:
            break
        found.append(Proposal(change=f"{so_far}{ranks * times} ranks", total=needed(last, ranks * times)))
    vision = config.train.get("vision", config.train["default"])
    if vision == "full" and not config.lora.modules_to_save and {"vision", "llm"} <= trained.keys():
        changed = replace(config, train={**config.train, "vision": "frozen"})
        total_then = needed(trace(changed, opened, batches, brought), ranks)
        found.append(Proposal(change="train.vision: frozen", total=total_then, anew=goes_on))
    smaller = replace(traced, config=replace(config, optim=replace(config.optim, name="adamw-8bit", momentum=MOMENTUM)))
    found.append(Proposal(change="optim.name: adamw-8bit", total=needed(smaller, ranks), anew=goes_on))
    return [proposal for proposal in found if proposal.total <= least]


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """What passes of a run need, and what would need less; bytes of the rank that needs most."""

    here: int | None
    """Of the pass that was asked about, if any."""
    heaviest: int
    proposals: list[Proposal]
    remarks: list[str]


def advise(
    config: TrainConfig,
    opened: Opened,
    ranks: int,
    held: Collection[str],
    memory: int,
    places: Sequence[Place],
    *,
    goes_on: bool,
) -> Advice:
    """The dry run's arithmetic for a run that goes on so many ranks and has had too little of `memory` bytes a rank.

    held: the parameters that it keeps in fp32. places: of the packs of one of its passes; none to ask about none.
    goes_on: it has a checkpoint. Reads those packs and the heaviest ones.
    """
    opened = replace(opened, recipe=replace(opened.recipe, share=WHOLE))
    brought = set(held) - {name for name, parameter in opened.model.named_parameters() if parameter.requires_grad}
    here = None
    if places:
        batch = batch_of(config, opened, places)
        here = largest(memory_of(trace(config, opened, [batch], brought), ranks))
    batches = heaviest(config, opened)
    traced = trace(config, opened, batches, brought)
    # A pass may need a little more than those that have most tokens, patches or targets.
    most = max(largest(memory_of(traced, ranks)), here or 0)
    proposals = proposals_of(traced, opened, ranks, batches, brought, min(memory, most - 1), goes_on=goes_on)
    return Advice(here=here, heaviest=most, proposals=proposals, remarks=beside(config, states_of(traced, ranks)))


def beside(config: TrainConfig, states: Sequence[States]) -> list[str]:
    """What there is to say beside the figures."""
    sequence = config.parallel.sequence
    lines = []
    if sequence > 1:
        lines.append(
            f"the activations are those of whole packs; with parallel.sequence {sequence} a rank keeps a part of them"
        )
    if config.parallel.offload:
        most = max(one.weights + one.optimizer + one.gradients for one in states)
        lines.append(
            f"with parallel.offload, weights, gradients and averages are in main memory: {most / 1e9:.2f} GB a rank,"
            " which are not shown above, beside what a checkpoint takes"
        )
    if config.memory.offload_bytes:
        lines.append(
            f"memory.offload_activations_gb pins {config.memory.offload_activations_gb:g} GB of main memory for each"
            " rank of a machine"
        )
    if config.kernels.compile:
        lines.append("of compiled blocks the activations are at most these: what a graph keeps is not traced")
    if config.kernels.liger != "off" and not (config.kernels.compile or config.deterministic):
        lines.append("where Liger's kernels are used, the activations are less than these")
    return lines
