"""What each rank does in each step, known from the sidecars alone before anything is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from lmms.train.loader import Request
from lmms.train.order import Order, by_cost, deal, idle_passes, next_shards, step_packs
from lmms.train.sets import Sets
from lmms.train.stream import Place


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepPlan:
    """One rank's part in one step."""

    step: int
    position: int
    """Packs trained before this step."""
    packs: npt.NDArray[np.int64]
    """[global_packs]: the packs of all ranks, the dearest first."""
    passes: list[Request]
    """The forward passes of this rank: as many as every other rank has."""
    has_images: list[bool]
    """Of each pass: whether any rank's packs hold images. The same on every rank, as are the collectives."""
    weight: float
    """Total weight of the step's targets."""
    tokens: int
    target_tokens: int
    visual_tokens: int
    """Placeholders of images."""
    padding_tokens: int
    """Computed for nothing, over all ranks: those of passes that do not count. Not in `tokens`."""


def plan_steps(
    order: Order, sets: Sets, rank: int, world: int, micro_packs: int, step: int, position: int, *, look_ahead: bool
) -> Iterator[StepPlan]:
    """The plans of step + 1, step + 2, ... without end, for a run that stands at `position` after `step`.

    look_ahead: tell the loader which shards come next, for its cache.
    """
    for number in count(step + 1):
        packs = by_cost(order, step_packs(order, position))
        ahead = tuple(next_shards(order, position)) if look_ahead else ()
        dealt = deal(packs, rank, world, micro_packs)
        of_a_pass = world * micro_packs
        has_images = [bool(sets.media[packs[i : i + of_a_pass]].any()) for i in range(0, len(packs), of_a_pass)]
        yield StepPlan(
            step=number,
            position=position,
            packs=packs,
            passes=[Request(tuple(map(sets.place, own)), counts, ahead) for own, counts in dealt],
            has_images=has_images,
            weight=float(sets.target_weight[packs].sum()),
            tokens=int(sets.tokens[packs].sum()),
            target_tokens=int(sets.target_tokens[packs].sum()),
            visual_tokens=int(sets.visual_tokens[packs].sum()),
            padding_tokens=idle_passes(len(packs), world, micro_packs) * int(sets.tokens[packs[-1]]),
        )
        position += len(packs)


def pack_names(places: Iterable[Place]) -> str:
    """How to name packs to a person: by number, and by set where that is not the first."""
    numbers = sorted((place.set, place.pack) for place in places)
    return "packs " + ", ".join(str(pack) if k == 0 else f"{pack} of set {k}" for k, pack in numbers)
