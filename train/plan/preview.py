"""A run's order before it is trained: what each step takes, how well it is balanced, what a rank reads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.model_folder import PREP_FILES, resolve_model
from lmms.configs.errors import ConfigError
from lmms.configs.settings.train import TrainConfig
from lmms.train.data.balance import in_random_order, step_costs, take_steps
from lmms.train.data.costs import table_costs
from lmms.train.data.fit import fitting_model
from lmms.train.data.order import Order, deal
from lmms.train.data.phases import go_on, order_of, run_steps, start_phase
from lmms.train.data.sets import Sets, hashes, open_sets, packs_digest
from lmms.train.data.sources import Sources, join_sources, source_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReads:
    """What one rank reads in one step; a pack that only keeps it in step with the others is read too."""

    packs: int
    shards: int
    bytes: int


def rank_reads(sets: Sets, packs: npt.NDArray[np.int64], rank: int, world: int, micro_packs: int) -> RankReads:
    """What a rank reads of a step whose packs come by_cost."""
    passes = deal(packs, rank, world, micro_packs)
    places = [sets.place(pack) for own, _ in passes for pack in own]
    return RankReads(
        packs=len(places),
        shards=len({(place.set, place.shard) for place in places}),
        bytes=sum(place.bytes for place in places),
    )


Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Preview:
    """The order of a run on some ranks, and the steps to come, up to the end of some epochs."""

    sets: Sets
    sources: Sources
    order: Order
    costs: Int64s
    """[2, packs]: in the language model, and in the vision tower."""
    step: int
    """Steps taken before the first one here."""
    position: int
    """Packs trained before it."""
    steps: Int64s
    """[steps, global_packs]: the packs of each, the dearest first."""
    shuffled: Int64s
    """The same packs in random order."""
    world: int
    micro_packs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPreview:
    """One step."""

    step: int
    position: int
    """Packs trained before it."""
    digest: str
    """As metrics.jsonl will have it."""
    tokens: int
    balance: float
    """Cost of the mean rank over that of the dearest, summed over the passes: 1 is no waiting."""
    balance_random: float
    """Of a step of packs in random order."""
    sources: dict[str, float]
    """Shares of the tokens."""
    rank_reads: RankReads
    """Of rank 0."""


def preview(config: TrainConfig, *, world: int = 1, epochs: int = 1, run: Path | None = None) -> Preview:
    """The steps to come of a run with these settings, on some ranks, for some passes over its shards or to its end.

    run: the output folder to go on from; the steps are then those after its newest complete checkpoint, or the one that
    config.resume names. Raises the classes of configs/errors.py: what `lmms train` refuses to go on from, too.
    """
    sets = open_sets([share.shards for share in config.data.shares], None, config.data.retry_s)
    folder = resolve_model(config.model.path, PREP_FILES)
    for dataset in sets.datasets:
        fitting_model(str(folder), dataset)
    # What can be refused is, before torch and transformers are loaded, which takes seconds.
    from lmms.train.checkpoint.read import read_state
    from lmms.train.checkpoint.resume import resumed_state
    from lmms.train.model.flops import model_cost
    from lmms.train.model.folder import model_of
    from lmms.train.plan.open import fresh_state

    cost = model_cost(model_of(folder, "none"), config.train, config.lora)
    phases, step, position = [start_phase(config, sets, cost)], 0, 0
    if run and (checkpoint := _checkpoint(config, run)):
        stored = read_state(checkpoint)
        resumed_state(
            fresh_state(config, sets.datasets, folder, phases[0], cost), stored, checkpoint, config.resume_changes
        )
        step, position = stored.step, stored.position
        phases = go_on(stored.phases, phases[0], step, position)
    left = run_steps(config, phases) - step
    if left < 1:
        raise ConfigError(f"nothing is left to show: the run is at step {step} of {step + left}")
    order = order_of(sets, phases[-1])
    steps = take_steps(order, position, min(math.ceil(epochs * phases[-1].pass_packs / order.global_packs), left))
    return Preview(
        sets=sets,
        sources=join_sources(sets),
        order=order,
        costs=np.concatenate([table_costs(cost, sidecar) for sidecar in sets.sidecars], axis=1),
        step=step,
        position=position,
        steps=steps,
        shuffled=in_random_order(steps),
        world=world,
        micro_packs=config.data.micro_packs,
    )


def _checkpoint(config: TrainConfig, run: Path) -> Path | None:
    if config.resume == "never":
        raise ConfigError(f"resume is never, but {run} was named to go on from; leave out one of them")
    if config.resume != "auto":
        return Path(config.resume).expanduser()
    from lmms.train.checkpoint.read import list_checkpoints

    return next(reversed(list_checkpoints(run)[0]), None)


def step_previews(seen: Preview) -> Iterator[StepPreview]:
    """Each step, from the first on."""
    once = seen.order.costs[None]
    ordered, shuffled = (
        mean / dearest
        for dearest, mean in (
            step_costs(once, steps, seen.world, seen.micro_packs) for steps in (seen.steps, seen.shuffled)
        )
    )
    shares = source_shares(seen)
    xxh3 = hashes(seen.sets)
    for i, packs in enumerate(seen.steps):
        yield StepPreview(
            step=seen.step + i + 1,
            position=seen.position + i * len(packs),
            digest=f"{packs_digest(xxh3[packs]):016x}",
            tokens=int(seen.sets.tokens[packs].sum()),
            balance=float(ordered[i]),
            balance_random=float(shuffled[i]),
            sources=dict(zip(seen.sources.names, shares[i].tolist(), strict=True)),
            rank_reads=rank_reads(seen.sets, packs, 0, seen.world, seen.micro_packs),
        )


def source_shares(seen: Preview) -> npt.NDArray[np.float64]:
    """float64 [steps, sources]: shares of each step's tokens."""
    tokens = source_tokens(seen.sources, seen.steps)
    shares: npt.NDArray[np.float64] = tokens / tokens.sum(axis=1, keepdims=True)
    return shares
