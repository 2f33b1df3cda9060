"""What each rank does in each step, known from the sidecars alone before anything is read."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import numpy.typing as npt

from lmms.configs.stores.remote import FileStore
from lmms.train.data.order import Order, by_cost, deal, idle_passes, step_packs
from lmms.train.data.sets import Sets
from lmms.train.data.shards import Place, Request
from lmms.train.data.upcoming import Ahead, Uses, marks, next_shards


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
    """Of the step's targets, by the run's loss_weight: the denominator."""
    tokens: int
    target_tokens: int
    visual_tokens: int
    """Placeholders of images."""
    padding_tokens: int
    """Computed for nothing, over all ranks: those of passes that do not count, and what batches are filled up with
    where they are compiled. Not in `tokens`."""
    ahead: Ahead
    """What the cache is to hold; the same object until it changes, empty where nobody looks ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """The evaluations of a run, as far as a cache is concerned."""

    shards: Ahead
    """(set, shard) of what they read, in order."""
    next_step: Callable[[int], int]
    """The first step from this one on that is followed by an evaluation."""


def plan_steps(
    order: Order,
    sets: Sets,
    rank: int,
    world: int,
    micro_packs: int,
    step: int,
    position: int,
    *,
    look_ahead: bool,
    padded_to: int | None = None,
    evaluated: Evaluated | None = None,
) -> Iterator[StepPlan]:
    """The plans of step + 1, step + 2, ... without end, for a run that stands at `position` after `step`.

    look_ahead: say which shards come next, for a cache; to the loader only where it needs whole shards.
    padded_to: tokens of every batch, where they all have as many.
    evaluated: what evaluations read comes in the same list.
    """
    coming = _coming(order, evaluated) if look_ahead else lambda number, position: ()
    whole = [isinstance(dataset.store, FileStore) for dataset in sets.datasets]
    for number in count(step + 1):
        packs = by_cost(order, step_packs(order, position))
        ahead = coming(number, position)
        dealt = deal(packs, rank, world, micro_packs)
        of_a_pass = world * micro_packs
        tokens = int(sets.tokens[packs].sum())
        has_images = [bool(sets.media[packs[i : i + of_a_pass]].any()) for i in range(0, len(packs), of_a_pass)]
        yield StepPlan(
            step=number,
            position=position,
            packs=packs,
            passes=[_request(tuple(map(sets.place, own)), counts, whole, ahead) for own, counts in dealt],
            has_images=has_images,
            weight=float(sets.target_weight[packs].sum()),
            tokens=tokens,
            target_tokens=int(sets.target_tokens[packs].sum()),
            visual_tokens=int(sets.visual_tokens[packs].sum()),
            padding_tokens=idle_passes(len(packs), world, micro_packs) * int(sets.tokens[packs[-1]])
            if padded_to is None
            else len(has_images) * world * padded_to - tokens,
            ahead=ahead,
        )
        position += len(packs)


def _coming(order: Order, evaluated: Evaluated | None) -> Callable[[int, int], Ahead]:
    """(step, packs trained before it) -> the shards that are needed next, the same list until it changes."""
    known: Uses = {}
    last: list[tuple[object, Ahead]] = []

    def coming(number: int, position: int) -> Ahead:
        due = evaluated.next_step(number) if evaluated else 0
        at = marks(order, position)
        if not last or last[0][0] != (at, due):
            until = (due - number + 1) * order.global_packs
            others = dict.fromkeys(evaluated.shards, until) if evaluated else {}
            last[:] = [((at, due), next_shards(order, at, known, others))]
        return last[0][1]

    return coming


def _request(places: tuple[Place, ...], counts: bool, whole: Sequence[bool], ahead: Ahead) -> Request:
    """A pass; with the list, which goes to another process, only where packs cannot be read but from whole shards."""
    return Request(places, counts, ahead if any(whole[place.set] for place in places) else ())


def pack_names(places: Iterable[Place]) -> str:
    """How to name packs to a person: by number, and by set where that is not the first; each once."""
    numbers = sorted({(place.set, place.pack) for place in places})
    return "packs " + ", ".join(str(pack) if k == 0 else f"{pack} of set {k}" for k, pack in numbers)
