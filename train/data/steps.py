"""What each rank does in each step, known from the sidecars alone before anything is read."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmms.train.data.order import Order, by_cost, deal, idle_passes, step_packs
from lmms.train.data.sets import Sets
from lmms.train.data.shards import Place, Request


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepPlan:
    """One rank's part in one step."""

    step: int
    position: int
    """Packs trained before this step."""
    packs: npt.NDArray[np.int64]
    """[global_packs]: the packs of all ranks, the most expensive first."""
    passes: list[Request]
    """The forward passes of this rank: as many as every other rank has."""
    has_images: list[bool]
    """Whether any rank's packs hold images, for each pass. The same on every rank, as are the collectives."""
    has_sounds: list[bool]
    """The same for sounds."""
    weight: float
    """Sum of the weights of the step's targets, by the run's loss_weight: the denominator."""
    tokens: int
    target_tokens: int
    visual_tokens: int
    """Placeholders of images."""
    sound_tokens: int
    """Placeholders of sounds."""
    padding_tokens: int
    """Tokens computed for nothing, over all ranks: those of passes that do not count, and what batches are filled up
    with where blocks are compiled. Not in `tokens`."""


class RankShare(NamedTuple):
    """Which packs of every step a rank takes, see order.deal."""

    rank: int = 0
    ranks: int = 1
    micro_packs: int = 1
    """Packs of one forward pass."""


class Progress(NamedTuple):
    """How far a run has come."""

    step: int = 0
    position: int = 0
    """Packs trained in these steps."""


ONE_RANK, NO_STEPS = RankShare(), Progress()


def plan_steps(
    order: Order,
    sets: Sets,
    share: RankShare = ONE_RANK,
    done: Progress = NO_STEPS,
    padded_to: int | None = None,
) -> Iterator[StepPlan]:
    """One rank's plans of the steps after those that are done, without end.

    padded_to: tokens of every batch, where all batches have equally many.
    """
    position = done.position
    for number in count(done.step + 1):
        packs = by_cost(order, step_packs(order, position))
        side_by_side = share.ranks * share.micro_packs
        tokens = int(sets.tokens[packs].sum())
        of_passes = [packs[i : i + side_by_side] for i in range(0, len(packs), side_by_side)]
        yield StepPlan(
            step=number,
            position=position,
            packs=packs,
            passes=[Request(tuple(map(sets.place, taken)), counts) for taken, counts in deal(packs, *share)],
            has_images=[bool(sets.visual_tokens[some].any()) for some in of_passes],
            has_sounds=[bool(sets.sound_tokens[some].any()) for some in of_passes],
            weight=float(sets.target_weight[packs].sum()),
            tokens=tokens,
            target_tokens=int(sets.target_tokens[packs].sum()),
            visual_tokens=int(sets.visual_tokens[packs].sum()),
            sound_tokens=int(sets.sound_tokens[packs].sum()),
            padding_tokens=idle_passes(len(packs), share.ranks, share.micro_packs) * int(sets.tokens[packs[-1]])
            if padded_to is None
            else len(of_passes) * share.ranks * padded_to - tokens,
        )
        position += len(packs)


def pack_names(places: Iterable[Place]) -> str:
    """Names of packs for a person: their numbers, with the set where that is not the first; each pack once."""
    numbers = sorted({(place.set, place.pack) for place in places})
    return "packs " + ", ".join(str(pack) if k == 0 else f"{pack} of set {k}" for k, pack in numbers)
