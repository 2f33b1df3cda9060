"""Changes that would need less memory: for a dry run whose cards are too small, and a run that ran out of memory."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmms.configs.errors import ConfigError
from lmms.configs.settings.optim import MOMENTUM
from lmms.configs.settings.train import TrainConfig
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

_WORTH_IT = 0.01
"""The least share of a rank's bytes, without the fixed allowance, that a change has to save."""

_MORE_RANKS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """One change of the settings, and the memory that a rank would need then."""

    change: str
    total: int
    """Bytes."""
    from_start: bool = False
    """Whether no checkpoint can go on with the change: the run would have to start again, in another output."""


def single_changes(config: TrainConfig, trained: Collection[str], offload_gb: int) -> list[tuple[str, TrainConfig]]:
    """(change, settings with this change alone) for each change that may need less memory, cheapest in time first.

    trained: the parts that are trained, at least partly. offload_gb: GB of main memory for all that blocks keep now.
    """
    memory = config.memory
    changes: list[tuple[str, dict[str, Any]]] = [
        ("parallel", {"reshard": True}),
        ("parallel", {"replicate": 1}),
        ("data", {"micro_packs": 1}),
    ]
    if memory.recompute == "none":
        changes.append(("memory", {"recompute": "elementwise"}))
    if {"vision", "audio"} & set(trained) and memory.vision != "full":
        changes.append(("memory", {"recompute_vision": "full"}))
    changes.append(("memory", {"recompute": "full"}))
    if offload_gb > memory.offload_activations_gb:
        changes.append(("memory", {"offload_activations_gb": float(offload_gb)}))
    for tower in ("vision", "audio"):
        how = config.train.get(tower, config.train["default"])
        if how == "full" and not config.lora.modules_to_save and {tower, "llm"} <= set(trained):
            changes.append(("train", {tower: "frozen"}))
    changes.append(("optim", {"name": "adamw-8bit", "momentum": MOMENTUM}))
    useful = []
    for section, values in changes:
        name, value = next(iter(values.items()))
        changed = _with(config, section, values)
        if changed not in (None, config):
            text = f"{value:g}" if isinstance(value, float) else str(value)
            useful.append((f"{section}.{name}: {text.lower()}", changed))
    return useful


def _with(config: TrainConfig, section: str, values: Mapping[str, Any]) -> TrainConfig | None:
    """The settings with these values in one section; None where other settings contradict the values."""
    before = getattr(config, section)
    try:
        after = {**before, **values} if isinstance(before, Mapping) else replace(before, **values)
        sections: dict[str, Any] = {section: after}
        return replace(config, **sections)
    except ConfigError:
        return None


def proposals_of(traced: Traced, ranks: int, enough: int, *, goes_on: bool) -> list[Proposal]:
    """Each single change that saves memory: settings, more ranks until `enough` bytes are reached, another training.

    goes_on: there is a checkpoint to go on from.
    """
    config, trained = traced.config, parameters_by_part(traced.model, trained=True)
    total = largest(memory_of(traced, ranks))
    least = total - _WORTH_IT * (total - ALLOWANCE_BYTES)
    kept = max(
        offloaded_bytes(traced_model(config, traced.opened, traced.overlaid), batch, cuda_dtype(config))
        for batch in traced.batches
    )
    mild: list[Proposal] = []
    other_runs: list[Proposal] = []
    for change, changed in single_changes(config, trained, -(-kept // 10**9)):
        needed = largest(memory_of(_traced_with(changed, traced), ranks))
        trains_otherwise = change.startswith(("train.", "optim."))
        proposal = Proposal(change=change, total=needed, from_start=goes_on and trains_otherwise)
        (other_runs if trains_otherwise else mild).append(proposal)
    for times in _MORE_RANKS:
        if min((proposal.total for proposal in mild), default=total) <= enough:
            break
        mild.append(Proposal(change=f"{ranks * times} ranks", total=largest(memory_of(traced, ranks * times))))
    return [proposal for proposal in (*mild, *other_runs) if proposal.total <= least]


def _traced_with(changed: TrainConfig, traced: Traced) -> Traced:
    """The passes with changed settings: they are traced again only where they may differ."""
    config, batches = traced.config, traced.batches
    if changed.data != config.data:
        batches = heaviest(changed, traced.opened)
    elif (changed.memory, changed.train) == (config.memory, config.train):
        return replace(traced, config=changed)
    return trace(changed, traced.opened, batches, traced.overlaid)


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The memory that passes of a run need, and changes that would need less; bytes of the rank that needs most."""

    here: int | None
    """Bytes of the pass that was asked about, if any."""
    heaviest: int
    proposals: list[Proposal]
    remarks: list[str]


def advise(
    config: TrainConfig,
    opened: Opened,
    ranks: int,
    checkpointed: Collection[str],
    memory: int,
    places: Sequence[Place],
    *,
    goes_on: bool,
) -> Advice:
    """The dry run's arithmetic for a run on so many ranks that ran out of `memory` bytes a rank.

    checkpointed: the parameters that the run keeps in fp32. places: the packs of a pass of the run; empty to ask about
    no pass. goes_on: the run has a checkpoint. Reads these packs and the heaviest packs.
    """
    opened = replace(opened, recipe=replace(opened.recipe, share=WHOLE))
    overlaid = set(checkpointed) - {
        name for name, parameter in opened.model.named_parameters() if parameter.requires_grad
    }
    here = None
    if places:
        batch = batch_of(config, opened, places)
        here = largest(memory_of(trace(config, opened, [batch], overlaid), ranks))
    traced = trace(config, opened, heaviest(config, opened), overlaid)
    # A pass may need a little more than the passes with most tokens, patches or targets.
    most = max(largest(memory_of(traced, ranks)), here or 0)
    proposals = proposals_of(traced, ranks, min(memory, most - 1), goes_on=goes_on)
    return Advice(
        here=here, heaviest=most, proposals=proposals, remarks=figure_remarks(config, states_of(traced, ranks))
    )


def figure_remarks(config: TrainConfig, states: Sequence[States]) -> list[str]:
    """Remarks for a person, besides the figures."""
    sequence = config.parallel.sequence
    lines = []
    if sequence > 1:
        lines.append(
            f"the activations are those of whole packs; with parallel.sequence {sequence} a rank keeps a part of them"
        )
    if config.parallel.offload:
        most = max(state.weights + state.optimizer + state.gradients for state in states)
        lines.append(
            f"with parallel.offload, weights, gradients and averages are in main memory: {most / 1e9:.2f} GB a rank,"
            " which are not shown above, besides what a checkpoint takes"
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
