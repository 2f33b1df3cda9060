"""Samples -> packs while they fill: large samples spread by cost, small ones by quotas. See prep/planning/balanced.py.

All functions change the packs and `placed`, int32 [samples]: the pack of each sample, -1 for none so far.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lmms.prep.planning.tight import Int32s, Ints

HIGHEST = 2**16 - 1
"""The largest number that is sorted by digits, several times faster; higher levels count as this level."""
_FRACTION_BITS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What the plan knows of samples: int32 [samples] each."""

    tokens: Int32s
    patches: Int32s
    costs: Int32s
    """Cost beyond the tokens, in units of the cost of one token."""

    def take(self, which: Ints | Int32s | slice) -> "Samples":
        """These samples alone."""
        if isinstance(which, slice):
            return Samples(self.tokens[which], self.patches[which], self.costs[which])
        # All numbers are in range, and a look whether they are takes a third of the time.
        return Samples(*(column.take(which, mode="clip") for column in (self.tokens, self.patches, self.costs)))


@dataclass(slots=True, eq=False)
class Packs:
    """The packs while they fill."""

    room: Int32s
    patch_room: Int32s
    costs: Ints
    """Cost beyond tokens."""

    def put(self, packs: Ints, samples: Samples) -> None:
        """Put a sample into each of these packs."""
        self.room[packs] -= samples.tokens
        self.patch_room[packs] -= samples.patches
        self.costs[packs] += samples.costs


def spread(packs: Packs, samples: Samples, placed: Int32s, which: range, width: int) -> None:
    """Place large samples, as far as there is room: level by level, a sample for each pack of the lowest level."""
    if not which:
        return
    smallest = int(samples.tokens[which.start : which.stop].min())
    waiting: dict[int, list[Ints]] = {}
    levels: list[int] = []

    def wait(numbers: Ints) -> None:
        for level, numbers_there in _by_level(numbers[packs.room[numbers] >= smallest], packs.costs, width):
            if level not in waiting:
                waiting[level] = []
                heapq.heappush(levels, level)
            waiting[level].append(numbers_there)

    wait(np.arange(len(packs.room)))
    again, fresh = np.empty(0, np.int64), which.start
    while levels and (len(again) or fresh < which.stop):
        lowest = np.concatenate(waiting.pop(heapq.heappop(levels)))
        most = len(again) + which.stop - fresh
        if len(lowest) > most:
            lowest = lowest[np.argsort(packs.costs[lowest], kind="stable")]
            wait(lowest[most:])
            lowest = lowest[:most]
        taken = max(len(lowest) - len(again), 0)
        tried = np.concatenate([again[: len(lowest)], np.arange(fresh, fresh + taken)])
        again, fresh = again[len(lowest) :], fresh + taken
        tried = tried[_by_falling(samples.tokens[tried])]
        lowest = lowest[_by_falling(packs.room[lowest])]
        fits = (samples.tokens[tried] <= packs.room[lowest]) & (samples.patches[tried] <= packs.patch_room[lowest])
        again = np.concatenate([tried[~fits], again])
        lowest, tried = lowest[fits], tried[fits]
        placed[tried] = lowest
        packs.put(lowest, samples.take(tried))
        wait(lowest)


def _by_level(numbers: Ints, costs: Ints, width: int) -> Iterator[tuple[int, Ints]]:
    """(level, the packs of that level) of these packs."""
    if not len(numbers):
        return
    levels = np.minimum(costs[numbers] // width, HIGHEST).astype(np.uint16)
    sorting = np.argsort(levels, kind="stable")
    levels, numbers = levels[sorting], numbers[sorting]
    cuts = np.flatnonzero(np.diff(levels)) + 1
    yield from zip(levels[[0, *cuts]].tolist(), np.split(numbers, cuts), strict=True)


def _by_falling(values: Int32s | Ints) -> Ints:
    """int64 [n]: the places of the values, the largest first; of equal values the first place first."""
    most = int(values.max(initial=0))
    if most <= HIGHEST:
        return np.argsort((most - values).astype(np.uint16), kind="stable")
    return np.argsort(-values, kind="stable")


def room_to_keep(packs: Packs, samples: Samples, seq_len: int) -> Int32s:
    """int32 [packs]: room that dear packs keep empty while these samples, all that are left, are placed.

    Two fifths of the room that is to spare stay with all packs: samples of many sizes do not fill a pack to the end.
    """
    spare = int(packs.room.sum(dtype=np.int64)) - int(samples.tokens.sum(dtype=np.int64))
    if spare <= 0:
        return np.zeros_like(packs.room)
    return packs.room - quotas_of(packs, samples, seq_len, spare * 2 // 5).astype(np.int32)


def quotas_of(packs: Packs, samples: Samples, seq_len: int, more: int) -> Ints:
    """int64 [packs]: tokens of these samples for each pack, so that packs with room left have one total cost.

    more: tokens beyond those of the samples that the quotas shall have, as far as there is room.
    """
    tokens = max(int(samples.tokens.sum(dtype=np.int64)), 1)
    of_tokens = (tokens << _FRACTION_BITS) // (tokens + int(samples.costs.sum(dtype=np.int64)))
    room = packs.room.astype(np.int64)
    totals = seq_len - room + packs.costs

    def quotas(level: int) -> Ints:
        quota: Ints = np.maximum(level - totals, 0)
        quota *= of_tokens
        quota >>= _FRACTION_BITS
        np.minimum(quota, room, out=quota)
        return quota

    low, high = 0, int(totals.max(initial=0)) + (seq_len << _FRACTION_BITS) // max(of_tokens, 1) + 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if int(quotas(middle).sum()) >= tokens + more else (middle + 1, high)
    return quotas(low)


def fill(packs: Packs, quotas: Ints, samples: Samples, placed: Int32s, which: range) -> None:
    """Place small samples round by round, one for each pack with quota left, as far as there are such packs."""
    if not which:
        return
    ready = np.flatnonzero(quotas >= int(samples.tokens[which.start : which.stop].min()))
    at = which.start
    while at < which.stop and len(ready):
        window = slice(at, min(at + len(ready), which.stop))
        longest, most_patches = int(samples.tokens[window].max()), int(samples.patches[window].max())
        able = ready[(quotas[ready] >= longest) & (packs.patch_room[ready] >= most_patches)]
        left = which.stop - at
        if not len(able):
            return
        if left < len(able):
            able = able[_by_falling(quotas[able])[:left]]
        rounds = 1 if most_patches else min(int(quotas[able].min()) // longest, left // len(able))
        end = at + rounds * len(able)
        placed[at:end] = np.tile(able, rounds)
        tokens = samples.tokens[at:end].reshape(rounds, -1).sum(axis=0, dtype=np.int32)
        quotas[able] -= tokens
        packs.room[able] -= tokens
        if most_patches:
            packs.patch_room[able] -= samples.patches[at:end]
        at = end
