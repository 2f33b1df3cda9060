"""Which shards a run reads next, for its cache: known exactly from the order, long before they are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from lmms.train.data.mixture import PERIOD, draws
from lmms.train.data.order import Order, SetOrder, epoch_order, last_made, locate, shard_of, window_packs

Upcoming = tuple[tuple[int, int], ...]
"""(set, shard) of the shards that are needed next, in order of their next use."""

Uses = dict[tuple[int, int], list[tuple[int, int]]]
"""(set, mark of the set) -> (shard, packs of the set until the shard's next use) of the set's shards."""

_MARKS = 64
"""Places in a window at which its list is made again; between them, shards that are done with count as needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """The evaluations of a run, as far as a cache is concerned."""

    shards: Upcoming
    """(set, shard) of the shards that evaluations read, in order."""
    next_step: Callable[[int], int]
    """step -> the first step that is followed by an evaluation, this step or a later step."""


def upcoming_shards(order: Order, evaluated: Evaluated | None = None) -> Callable[[int, int], Upcoming]:
    """A function of (step, packs trained before that step): the shards that are needed from there on.

    It returns the same object until the list changes. What evaluations read stands in the same list.
    """
    known: Uses = {}
    last: list[tuple[object, Upcoming]] = []

    def upcoming(step: int, position: int) -> Upcoming:
        due = evaluated.next_step(step) if evaluated else 0
        at = marks(order, position)
        if not last or last[0][0] != (at, due):
            until = (due - step + 1) * order.global_packs
            others = dict.fromkeys(evaluated.shards, until) if evaluated else {}
            last[:] = [((at, due), next_shards(order, at, known, others))]
        return last[0][1]

    return upcoming


def marks(order: Order, position: int) -> tuple[int, ...]:
    """The position in each set's sequence from which upcoming shards are counted. Other marks give another list."""
    starts = (start for _, start in draws(order.phase, position, 1))
    return tuple(_mark(set_order, start) for set_order, start in zip(order.sets, starts, strict=True))


def next_shards(
    order: Order, at: tuple[int, ...], known: Uses, others: Mapping[tuple[int, int], float] = MappingProxyType({})
) -> Upcoming:
    """The shards that the rest of each set's window and its next window need, the shard that is needed first in front.

    at: the sets' marks. known: the lists of the last marks of each set, kept here; {} at first.
    others: other shards that are needed, (set, shard) -> packs of the run until then.
    """
    uses = dict(others)
    for k, (set_order, start) in enumerate(zip(order.sets, at, strict=True)):
        rate = order.phase.turns[k] / PERIOD
        of_set = last_made(known, (k, start), len(at), partial(_uses, set_order, start))
        uses |= {(k, shard): use / rate for shard, use in of_set}
    return tuple(sorted(uses, key=lambda shard: (uses[shard], shard)))


def _mark(order: SetOrder, start: int) -> int:
    epoch, window, skipped = locate(order, start)
    starts = epoch_order(order, epoch)[1]
    return start - skipped % max(int(starts[window + 1] - starts[window]) // _MARKS, 1)


def _uses(order: SetOrder, start: int) -> list[tuple[int, int]]:
    """(shard, packs of the set until the shard's next use) for the rest of a window and the next window."""
    epoch, window, skipped = locate(order, start)
    after = (epoch, window + 1) if window + 2 < len(epoch_order(order, epoch)[1]) else (epoch + 1, 0)
    rest = window_packs(order, epoch, window)[skipped:]
    packs = np.concatenate([rest, window_packs(order, *after)])
    shards, first = np.unique(shard_of(order, packs), return_index=True)
    return list(zip(shards.tolist(), first.tolist(), strict=True))
