"""A run's order before it is trained: what each step takes, how well it is balanced, what a rank reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.configs.data import ShareConfig
from lmms.configs.model_folder import PREP_FILES, resolve_model
from lmms.configs.train import EVERYTHING, How
from lmms.train.balance import in_random_order, step_costs, take_steps
from lmms.train.fit import fitting_model, model_of
from lmms.train.flops import model_cost, table_costs
from lmms.train.mixture import Phase
from lmms.train.order import Order
from lmms.train.reads import RankReads, hashes, rank_reads
from lmms.train.sets import Sets, make_order, mixture_turns, open_sets, packs_digest
from lmms.train.sources import Sources, join_sources, source_tokens

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Preview:
    """The order of a run on some ranks, and its steps up to the end of some epochs."""

    sets: Sets
    sources: Sources
    order: Order
    costs: Int64s
    """[2, packs]: in the language model, and in the vision tower."""
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


def preview(
    places: Sequence[str],
    *,
    global_packs: int,
    world: int = 1,
    micro_packs: int = 1,
    epochs: int = 1,
    group: int = 1,
    seed: int = 0,
    model: str | None = None,
    train: Mapping[str, How] = EVERYTHING,
) -> Preview:
    """The order over the shards in these places; of several, each takes its packs' share of the turns.

    model: folder or hub id of what is trained, by default what the shards were built for. Raises the classes of
    configs/errors.py.
    """
    sets = open_sets(places)
    folder = resolve_model(model or sets.datasets[0].manifest.model, PREP_FILES)
    for dataset in sets.datasets:
        fitting_model(str(folder), dataset)
    cost = model_cost(model_of(folder, "none").hf.config, train)
    turns = mixture_turns(sets, [ShareConfig(shards=place, epochs=1.0) for place in places])
    order = make_order(sets, Phase(turns=turns, cursors=(0,) * len(turns), group=group), cost, seed, global_packs)
    steps = take_steps(order, 0, -(-epochs * len(order.costs) // global_packs))
    return Preview(
        sets=sets,
        sources=join_sources(sets),
        order=order,
        costs=np.concatenate([table_costs(cost, sidecar) for sidecar in sets.sidecars], axis=1),
        steps=steps,
        shuffled=in_random_order(steps),
        world=world,
        micro_packs=micro_packs,
    )


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
            step=i + 1,
            position=i * len(packs),
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
