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

import math

import numpy as np
import numpy.typing as npt

from lmms.prep.planning.spread import HIGHEST, Packs, Samples, fill, quotas_of, room_to_keep, spread
from lmms.prep.planning.tight import Int32s, Ints, Plan, check_samples, numbered, place_rest, plan_packs

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
_FEWER = (7, 3)
"""Classes of large samples to spread where samples find no room if all are: those from 1/8 of a pack on, from 1/2."""
_LEVELS = 512
_BLOCK = 2**16
"""Samples whose shares are computed at a time: few enough for a cache."""


def balanced_packs(samples: Samples, seq_len: int, max_patches: int, seed: int, more_packs: float = 0.01) -> Plan:
    """Which of the samples share a pack of seq_len tokens and max_patches patches, so that packs cost alike.

    more_packs: how many packs more than best fit needs there may be, as a share of those. Where samples then find no
    room, fewer of them are spread, and the others go by best fit; or the packs are those of plan_packs, if these cost
    more alike.

    Depends on nothing but its arguments and BALANCED. Raises BuildError for a sample that no pack holds.
    """
    check_samples(samples.tokens, samples.patches, seq_len, max_patches)
    allowed = _with_more(_fewest(samples, seq_len, max_patches), more_packs)
    bin_of = _balanced(samples, seq_len, max_patches, allowed, None)
    if int(bin_of.max(initial=-1)) < allowed:
        return numbered(bin_of, BALANCED, seed)
    tight = plan_packs(samples.tokens, samples.patches, seq_len, max_patches, seed)
    allowed = _with_more(tight.num_packs, more_packs)
    for spread_classes in (None, *_FEWER):
        bin_of = _balanced(samples, seq_len, max_patches, allowed, spread_classes)
        if int(bin_of.max()) < allowed:
            plan = numbered(bin_of, BALANCED, seed)
            return min(tight, plan, key=lambda each: _dearness(each, samples))
    return tight


def _dearness(plan: Plan, samples: Samples) -> tuple[int, int]:
    """How dear the dearest 1/64 of the packs are, as (whole, rest) of a number that compares plans of these samples."""
    costs = np.zeros(plan.num_packs, np.int64)
    np.add.at(costs, plan.pack_of, samples.tokens.astype(np.int64) + samples.costs)
    dearest = np.sort(costs)[-max(plan.num_packs // 64, 1) :]
    return divmod(int(dearest.sum()) * plan.num_packs, len(dearest))


def _fewest(samples: Samples, seq_len: int, max_patches: int) -> int:
    """Packs that no plan can do without."""
    by_tokens = -(-int(samples.tokens.sum(dtype=np.int64)) // seq_len)
    by_patches = -(-int(samples.patches.sum(dtype=np.int64)) // max(max_patches, 1))
    return max(by_tokens, by_patches, int(np.count_nonzero(samples.tokens > seq_len // 2)))


def _with_more(packs: int, share: float) -> int:
    return packs + int(packs * share)


def _balanced(samples: Samples, seq_len: int, max_patches: int, num_packs: int, spread_classes: int | None) -> Int32s:
    """int32 [samples]: the pack of each sample; numbers from num_packs on where so many packs do not do.

    spread_classes: how many classes of large samples are spread by cost, the others going by best fit; None: all.
    """
    mean_cost = int(samples.costs.sum(dtype=np.int64)) // max(num_packs, 1)
    order, large, small = _falling(samples, (seq_len, max_patches, mean_cost))
    samples = samples.take(order)
    packs = Packs(
        np.full(num_packs, seq_len, np.int32), np.full(num_packs, max_patches, np.int32), np.zeros(num_packs, np.int64)
    )
    placed = np.full(len(order), -1, np.int32)
    width = max((seq_len + mean_cost) // _LEVELS, 1)
    kept_empty = np.zeros(num_packs, np.int32)
    for number, which in enumerate(large[:spread_classes]):
        if number == _DEAR:
            kept_empty = room_to_keep(packs, samples.take(slice(which.start, None)), seq_len)
            packs.room -= kept_empty
        spread(packs, samples, placed, which, width)
    packs.room += kept_empty
    if spread_classes is None:
        quotas = quotas_of(packs, samples.take(slice(small[0].start, None)), seq_len, 0)
        for which in small:
            fill(packs, quotas, samples, placed, which)
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
    return (HIGHEST + (127 << 11) - halves).astype(np.uint16)


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
    np.copyto(shares, _MOST - _UNIT, where=of_tokens > _UNIT >> 1)
    is_small &= of_tokens < _LARGE[-1]
    np.maximum(shares, of_tokens, out=shares)
    np.copyto(shares, of_tokens, where=is_small)
    return shares
