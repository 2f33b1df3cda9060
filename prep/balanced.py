"""sample -> plan: packs of equal cost. What costs much is spread first, so that every pack gets a like share of it.

Full packs differ in what their samples cost beyond their tokens: attention, targets, vision. The rule is that of the
longest processing time first: samples by their falling share of what a pack holds (of its tokens, its patches, the mean
pack's cost beyond tokens), each into the pack of the least such cost that has room. How many packs there are is set
before: as many as the tokens take, and a share more.

Ten million samples, one after the other, would take a minute. So whole groups are placed at once:

    large    samples from 1/64 of a pack on. Packs whose costs differ by less than 1/512 of a pack's cost are one level;
             each pack of the lowest level takes a sample, the longest where most room is, and rises. Packs without room
             are asked again when samples have become smaller by a factor of the square root of two. When samples of
             half a pack are placed, dear packs get less room: most of the room that all packs have to spare
    small    each pack gets a quota of these samples' tokens, so that packs which do not become full end at one total
             cost. The samples, by falling size, go round by round to all packs with quota left
    rest     samples that found no room: by best fit into the room that is left, see plan.place_rest

Integers and sorting alone: the same plan on every machine. Equal samples are placed in the order of the input.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.prep.plan import Plan, check_samples, numbered, place_rest, plan_packs

BALANCED = "balanced/1"
"""Name that the manifest stores. Any change of the result needs a new name."""

_UNIT_BITS = 20
_UNIT = 1 << _UNIT_BITS
"""A whole pack, where shares of a pack are counted."""
_MOST = _UNIT << 4
"""Larger shares count as this share."""
_LARGE = tuple(math.isqrt(_UNIT**2 >> step) for step in range(13))
_SMALL = (*(_LARGE[-1] >> step for step in range(1, 15)), 0)
"""Lower bounds of the classes of large and of small samples."""
_DEAR = 3
"""Classes of large samples after which room is held back: those from half a pack on."""
_LEVELS = 512
_HIGHEST = 2**16 - 1
"""The largest number that is sorted by digits, several times faster; higher levels count as this level."""
_BLOCK = 2**16
"""Samples whose shares are computed at a time: few enough for a cache."""
_FRACTION_BITS = 16

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What the plan knows of samples: int32 [samples] each."""

    tokens: Int32s
    patches: Int32s
    costs: Int32s
    """Cost beyond the tokens, in units of the cost of one token."""

    def take(self, which: Ints | Int32s | slice) -> "Samples":
        """These samples alone."""
        return Samples(self.tokens[which], self.patches[which], self.costs[which])


@dataclass(slots=True, eq=False)
class _Packs:
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


def balanced_packs(samples: Samples, seq_len: int, max_patches: int, seed: int, more_packs: float = 0.01) -> Plan:
    """Which of the samples share a pack of seq_len tokens and max_patches patches, so that packs cost alike.

    more_packs: how many packs more than best fit needs there may be, as a share of those. Where that does not do, the
    packs are those of plan_packs. Depends on nothing but its arguments and BALANCED. Raises BuildError for a sample
    that no pack holds.
    """
    check_samples(samples.tokens, samples.patches, seq_len, max_patches)
    allowed = _with_more(_fewest(samples, seq_len, max_patches), more_packs)
    bin_of = _balanced(samples, seq_len, max_patches, allowed)
    if int(bin_of.max(initial=-1)) >= allowed:
        tight = plan_packs(samples.tokens, samples.patches, seq_len, max_patches, seed)
        tried, allowed = allowed, _with_more(tight.num_packs, more_packs)
        if int(bin_of.max()) >= allowed > tried:
            bin_of = _balanced(samples, seq_len, max_patches, allowed)
        if int(bin_of.max()) >= allowed:
            return tight
    return numbered(bin_of, BALANCED, seed)


def _fewest(samples: Samples, seq_len: int, max_patches: int) -> int:
    """Packs that no plan can do without."""
    by_tokens = -(-int(samples.tokens.sum(dtype=np.int64)) // seq_len)
    by_patches = -(-int(samples.patches.sum(dtype=np.int64)) // max(max_patches, 1))
    return max(by_tokens, by_patches, int(np.count_nonzero(samples.tokens > seq_len // 2)))


def _with_more(packs: int, share: float) -> int:
    return packs + int(packs * share)


def _balanced(samples: Samples, seq_len: int, max_patches: int, num_packs: int) -> Int32s:
    """int32 [samples]: the pack of each sample; numbers from num_packs on where so many packs do not do."""
    mean_cost = int(samples.costs.sum(dtype=np.int64)) // max(num_packs, 1)
    order, large, small = _falling(samples, (seq_len, max_patches, mean_cost))
    samples = samples.take(order)
    packs = _Packs(
        np.full(num_packs, seq_len, np.int32), np.full(num_packs, max_patches, np.int32), np.zeros(num_packs, np.int64)
    )
    placed = np.full(len(order), -1, np.int32)
    width = max((seq_len + mean_cost) // _LEVELS, 1)
    kept_empty = np.zeros(num_packs, np.int32)
    for number, which in enumerate(large):
        if number == _DEAR:
            kept_empty = _room_to_keep(packs, samples.take(slice(which.start, None)), seq_len)
            packs.room -= kept_empty
        _spread(packs, samples, placed, which, width)
    packs.room += kept_empty
    quotas = _quotas(packs, samples.take(slice(small[0].start, None)), seq_len, 0)
    for which in small:
        _fill(packs, quotas, samples, placed, which)
    rest = samples.take(left := np.flatnonzero(placed < 0))
    placed[left] = place_rest(packs.room, packs.patch_room, (rest.tokens, rest.patches), (seq_len, max_patches))
    bin_of = np.empty_like(placed)
    bin_of[order] = placed
    return bin_of


def _falling(samples: Samples, pack: tuple[int, int, int]) -> tuple[Int32s, list[range], list[range]]:
    """int32 [samples]: their numbers by falling share of a pack; and where in them each class of samples is.

    pack: tokens, patches and mean cost beyond tokens of a pack.
    """
    codes = np.empty(len(samples.tokens), np.uint16)
    for start in range(0, len(codes), _BLOCK):
        block = slice(start, start + _BLOCK)
        codes[block] = _codes(_shares(samples.take(block), pack))
    order = np.argsort(codes, kind="stable").astype(np.int32)
    last_codes = _codes(np.array([*_LARGE, *_SMALL]))
    ends = np.cumsum(np.bincount(codes, minlength=1 << 16))[last_codes].tolist()
    classes = [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
    return order, classes[: len(_LARGE)], classes[len(_LARGE) :]


def _codes(shares: Ints) -> npt.NDArray[np.uint16]:
    """uint16 [samples]: less for larger shares, the same for shares that differ by less than 1/2,048: sorted fast."""
    halves = (shares + 1).astype(np.float32).view(np.int32) >> 12
    return (_HIGHEST + (127 << 11) - halves).astype(np.uint16)


def _shares(samples: Samples, pack: tuple[int, int, int]) -> Ints:
    """int64 [samples]: the largest share of a pack that a sample takes; for a small sample, the share of its tokens."""

    def shares_of(column: Int32s, whole: int) -> Ints:
        shares = column.astype(np.int64)
        shares <<= _UNIT_BITS
        shares //= max(whole, 1)
        return np.minimum(shares, _MOST, out=shares)

    shares = shares_of(samples.patches, pack[1])
    np.maximum(shares, shares_of(samples.costs, pack[2]), out=shares)
    is_small = shares < _LARGE[-1]
    of_tokens = shares_of(samples.tokens, pack[0])
    is_small &= of_tokens < _LARGE[-1]
    np.maximum(shares, of_tokens, out=shares)
    np.copyto(shares, of_tokens, where=is_small)
    return shares


def _spread(packs: _Packs, samples: Samples, placed: Int32s, which: range, width: int) -> None:
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
    levels = np.minimum(costs[numbers] // width, _HIGHEST).astype(np.uint16)
    sorting = np.argsort(levels, kind="stable")
    levels, numbers = levels[sorting], numbers[sorting]
    cuts = np.flatnonzero(np.diff(levels)) + 1
    yield from zip(levels[[0, *cuts]].tolist(), np.split(numbers, cuts), strict=True)


def _by_falling(values: Int32s | Ints) -> Ints:
    """int64 [n]: the places of the values, the largest first; of equal values the first place first."""
    most = int(values.max(initial=0))
    if most <= _HIGHEST:
        return np.argsort((most - values).astype(np.uint16), kind="stable")
    return np.argsort(-values, kind="stable")


def _room_to_keep(packs: _Packs, samples: Samples, seq_len: int) -> Int32s:
    """int32 [packs]: room that dear packs keep empty while these samples, all that are left, are placed.

    Two fifths of the room that is to spare stay with all packs: samples of many sizes do not fill a pack to the end.
    """
    spare = int(packs.room.sum(dtype=np.int64)) - int(samples.tokens.sum(dtype=np.int64))
    if spare <= 0:
        return np.zeros_like(packs.room)
    return packs.room - _quotas(packs, samples, seq_len, spare * 2 // 5).astype(np.int32)


def _quotas(packs: _Packs, samples: Samples, seq_len: int, more: int) -> Ints:
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


def _fill(packs: _Packs, quotas: Ints, samples: Samples, placed: Int32s, which: range) -> None:
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
