"""A run's order before it is trained: the packs of each step, their balance, and what a rank reads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.model_folder import PREP_FILES, resolve_model
from lmms.configs.errors import ConfigError
from lmms.configs.settings.train import TrainConfig
from lmms.train.data.balance import in_random_order, packs_of_steps, step_costs
from lmms.train.data.costs import table_costs
from lmms.train.data.order import Order, deal
from lmms.train.data.phases import order_of, start_phase
from lmms.train.data.sets import Sets, hashes, open_sets, packs_digest
from lmms.train.data.sources import Sources, join_sources, source_tokens
from lmms.train.plan.fit import fitting_model


@dataclass(frozen=True, kw_only=True, slots=True)
class RankReads:
    """The data that one rank reads in one step; a pack that only keeps it in step with other ranks counts too."""

    packs: int
    shards: int
    bytes: int


def rank_reads(sets: Sets, packs: npt.NDArray[np.int64], rank: int, world: int, micro_packs: int) -> RankReads:
    """The data that a rank reads in a step whose packs are sorted by cost."""
    passes = deal(packs, rank, world, micro_packs)
    places = [sets.place(pack) for pass_packs, _ in passes for pack in pass_packs]
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
    cost: ModelCost
    costs: Int64s
    """[2, packs]: costs in the language model, and in the vision tower."""
    step: int
    """Steps taken before the first step of `steps`."""
    position: int
    """Packs trained before that step."""
    steps: Int64s
    """[steps, global_packs]: the packs of each step, the most expensive first."""
    shuffled: Int64s
    """The same packs in random order."""
    ranks: int
    micro_packs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPreview:
    """One step."""

    step: int
    position: int
    """Packs trained before this step."""
    digest: str
    """The digest that metrics.jsonl will have."""
    tokens: int
    balance: float
    """Cost of the mean rank over that of the most expensive rank, summed over the passes: 1 is no waiting."""
    balance_random: float
    """The balance of a step of packs in random order."""
    sources: dict[str, float]
    """Source -> its share of the tokens."""
    rank_reads: RankReads
    """The data that rank 0 reads."""


def preview(config: TrainConfig, *, ranks: int = 1, epochs: int = 1, run: Path | None = None) -> Preview:
    """The next steps of a run with these settings, on so many ranks, for some passes over its shards or to its end.

    run: the output folder to go on from; the steps are then those after its newest complete checkpoint, or after the
    checkpoint that config.resume names. Raises subclasses of LmmsError, as `lmms train` does for the same settings.
    """
    sets = open_sets([share.shards for share in config.data.shares], None, config.data.retry_s)
    folder = resolve_model(config.model.path, PREP_FILES)
    for dataset in sets.datasets:
        fitting_model(str(folder), dataset)
    # Imported after the checks: loading torch and transformers takes seconds.
    from lmms.train.model.flops import model_cost
    from lmms.train.model.folder import model_of
    from lmms.train.plan.open import fresh_state
    from lmms.train.plan.stand import stand_of

    cost = model_cost(model_of(folder, "none"), config.train, config.lora)
    phase = start_phase(config, sets, cost)
    fresh = fresh_state(config, sets.datasets, folder, phase, cost)
    stand = stand_of(config, fresh, phase, _checkpoint(config, run) if run else None)
    state, phase = stand.state, stand.phase
    left = stand.steps - state.step
    if left < 1:
        raise ConfigError(f"nothing is left to show: the run is at step {state.step} of {stand.steps}")
    order = order_of(sets, phase)
    steps = packs_of_steps(order, state.position, min(math.ceil(epochs * phase.pass_packs / order.global_packs), left))
    return Preview(
        sets=sets,
        sources=join_sources(sets),
        order=order,
        cost=phase.cost,
        costs=np.concatenate([table_costs(phase.cost, sidecar) for sidecar in sets.sidecars], axis=1),
        step=state.step,
        position=state.position,
        steps=steps,
        shuffled=in_random_order(steps),
        ranks=ranks,
        micro_packs=config.data.micro_packs,
    )


def _checkpoint(config: TrainConfig, run: Path) -> Path | None:
    if config.resume == "never":
        raise ConfigError(f"resume is never, but {run} was named to go on from; leave out one of them")
    if config.resume != "auto":
        return Path(config.resume).expanduser()
    from lmms.train.checkpoint.read import list_checkpoints

    return next(reversed(list_checkpoints(run)[0]), None)


def step_previews(view: Preview) -> Iterator[StepPreview]:
    """The previews of all steps, from the first on."""
    once = view.order.costs[None]
    ordered, shuffled = (
        mean / highest
        for highest, mean in (
            step_costs(once, steps, view.ranks, view.micro_packs) for steps in (view.steps, view.shuffled)
        )
    )
    shares = source_shares(view)
    xxh3 = hashes(view.sets)
    for i, packs in enumerate(view.steps):
        yield StepPreview(
            step=view.step + i + 1,
            position=view.position + i * len(packs),
            digest=f"{packs_digest(xxh3[packs]):016x}",
            tokens=int(view.sets.tokens[packs].sum()),
            balance=float(ordered[i]),
            balance_random=float(shuffled[i]),
            sources=dict(zip(view.sources.names, shares[i].tolist(), strict=True)),
            rank_reads=rank_reads(view.sets, packs, 0, view.ranks, view.micro_packs),
        )


def source_shares(view: Preview) -> npt.NDArray[np.float64]:
    """float64 [steps, sources]: shares of each step's tokens."""
    tokens = source_tokens(view.sources, view.steps)
    shares: npt.NDArray[np.float64] = tokens / tokens.sum(axis=1, keepdims=True)
    return shares
