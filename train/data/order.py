"""position -> the packs of a step: pure integers, the same on every rank, whatever the ranks, workers or passes.

The sequence of one set of shards (SetOrder) is endless: epoch e has positions [e * T, (e + 1) * T) of T packs.

    epoch    shards in hashed order, cut at shard boundaries into windows of about 64 k packs: what a remote run has to
             hold is bounded, and so is the work of resuming anywhere
    window   packs sorted by cost, each then moved by a hashed number of places; a walk by the golden ratio over them,
             so that any packs in a row are a sample of all costs, however many a step takes. Sorted by cost alone,
             neighbours would be neighbours in every epoch
    group    `group` positions in a row (1 by default) come from one place of the sorted window, so that packs which
             train side by side cost alike

Over several sets a Phase says whose turn each group is. Global step t is the packs at [p, p + G), wherever windows and
epochs end: nothing is dropped, repeated or padded, and the only state of a run is p and its phase.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.hashing import key64, keyed_hash, permutation
from lmms.configs.errors import ConfigError
from lmms.train.data.mixture import Phase, draws

ORDER_VERSION = "lmms/order/v2"
"""Part of every key, and of a checkpoint. Any change of the sequence is a new version."""

WINDOW_PACKS = 65_536

_GOLDEN = 2_654_435_769
"""2**32 over the golden ratio."""

_KEPT = 2
"""Windows, and tables of epochs, that each set keeps: steps cross from a window to the next. A window takes 0.5 MB."""

K = TypeVar("K")
V = TypeVar("V")

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SetOrder:
    """The identity of the sequence of one set of shards."""

    shard_packs: Int64s
    """[shards]: packs of each shard; packs are numbered shard by shard."""
    costs: Int64s
    """[packs]: the cost of each pack, see costs.table_costs."""
    seed: int
    name: str
    """Part of every key: the hash of the set's index, so that each set of a mixture has a different order."""
    group: int = 1
    """Positions in a row that cost alike, counted from the start of the sequence."""
    _windows: dict[tuple[int, int], Int64s] = field(default_factory=dict, init=False, repr=False)
    _epochs: dict[int, tuple[Int64s, Int64s]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.group < 1 or len(self.costs) < 1 or int(self.shard_packs.sum()) != len(self.costs):
            raise ConfigError(
                f"an order of {len(self.costs)} packs in shards of {int(self.shard_packs.sum())}, in groups of"
                f" {self.group}; expected at least one of each and as many packs as the shards hold"
            )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Order:
    """The identity of a run's sequence from the start of its phase on."""

    sets: tuple[SetOrder, ...]
    phase: Phase
    costs: Int64s
    """[packs of all sets]: the costs of the sets, one after the other."""
    global_packs: int
    """Packs of an optimizer step, over all ranks and micro-steps."""

    def __post_init__(self) -> None:
        if self.global_packs < 1:
            raise ConfigError(f"{self.global_packs} packs a step, expected at least 1")
        groups = {self.phase.group, *(set_order.group for set_order in self.sets)}
        if len(groups) > 1 or len(self.sets) != len(self.phase.turns):
            raise ConfigError(f"{len(self.sets)} sets in groups of {groups} for turns {self.phase.turns}")

    @property
    def first_packs(self) -> list[int]:
        """[sets + 1]: pack i of set k has the number first_packs[k] + i in the run; the last is the number of packs."""
        return [0, *np.cumsum([len(set_order.costs) for set_order in self.sets]).tolist()]


def step_packs(order: Order, position: int) -> Int64s:
    """int64 [global_packs]: the packs of the step after `position` trained packs, numbered over all sets."""
    numbers = np.empty(order.global_packs, np.int64)
    for k, (at, start) in enumerate(draws(order.phase, position, order.global_packs)):
        numbers[at] = order.first_packs[k] + set_packs(order.sets[k], start, start + len(at))
    return numbers


def deal(packs: Int64s, rank: int, world: int, micro_packs: int) -> list[tuple[list[int], bool]]:
    """The forward passes of one rank in a step whose packs come by_cost: the packs of each, and whether they count.

    Rank r of R takes every R-th pack, so packs that are trained side by side cost alike. All ranks have equally many
    passes: a rank with no pack left runs the step's cheapest pack with weight 0. The packs of a step are therefore the
    same for any number of ranks, and pass m of all ranks together is packs [m * R * micro_packs, (m + 1) * R *
    micro_packs).
    """
    rank_packs, cheapest = packs[rank::world].tolist(), packs[-1:].tolist()
    passes = range(0, -(-len(packs) // (world * micro_packs)) * micro_packs, micro_packs)
    return [(rank_packs[i : i + micro_packs], True) if i < len(rank_packs) else (cheapest, False) for i in passes]


def idle_passes(num_packs: int, world: int, micro_packs: int) -> int:
    """Passes of a step, over all ranks, that count for nothing: each is the step's cheapest pack, see deal."""
    passes = -(-num_packs // (world * micro_packs))
    return sum(passes - -(-len(range(rank, num_packs, world)) // micro_packs) for rank in range(world))


def by_cost(order: Order, packs: Int64s) -> Int64s:
    """The same packs, the most expensive first; of equal cost, the lowest number first."""
    return packs[np.lexsort((packs, -order.costs[packs]))]


def set_packs(order: SetOrder, start: int, end: int) -> Int64s:
    """int64 [end - start]: the packs at positions [start, end) of one set's endless sequence."""
    parts = [np.empty(0, np.int64)]
    while start < end:
        epoch, window, skipped = locate(order, start)
        packs = window_packs(order, epoch, window)
        parts.append(packs[skipped : skipped + end - start])
        start += len(parts[-1])
    return np.concatenate(parts)


def locate(order: SetOrder, position: int) -> tuple[int, int, int]:
    """(epoch, window in the epoch, packs of the window before the position) of a position in one set's sequence."""
    epoch, within = divmod(position, len(order.costs))
    starts = epoch_order(order, epoch)[1]
    window = int(np.searchsorted(starts, within, side="right")) - 1
    return epoch, window, within - int(starts[window])


def shard_of(order: SetOrder, packs: Int64s) -> Int64s:
    """int64, as `packs`: the shard that holds each pack."""
    return np.searchsorted(np.cumsum(order.shard_packs), packs, side="right")


def window_packs(order: SetOrder, epoch: int, window: int) -> Int64s:
    """int64 [n], read-only: the packs of a window in the order of their positions."""
    return last_made(order._windows, (epoch, window), _KEPT, lambda: _window_packs(order, epoch, window))


def epoch_order(order: SetOrder, epoch: int) -> tuple[Int64s, Int64s]:
    """(int64 [shards] in the epoch's order, int64 [windows + 1]: positions in the epoch at which windows start)."""
    return last_made(order._epochs, epoch, _KEPT, lambda: _epoch_order(order, epoch))


def last_made(kept: dict[K, V], key: K, limit: int, make: Callable[[], V]) -> V:
    """The value of a key, made only where `kept` does not have the value; `kept` holds the `limit` values used last."""
    value = kept.pop(key) if key in kept else make()
    kept[key] = value
    if len(kept) > limit:
        del kept[next(iter(kept))]
    return value


def _window_packs(order: SetOrder, epoch: int, window: int) -> Int64s:
    shards, starts = epoch_order(order, epoch)
    begin, end = int(starts[window]), int(starts[window + 1])
    sizes = order.shard_packs[shards]
    ends = np.cumsum(sizes)
    inside = slice(int(np.searchsorted(ends, begin, side="right")), int(np.searchsorted(ends, end)) + 1)
    first_packs = np.cumsum(order.shard_packs) - order.shard_packs
    packs = _ranges(first_packs[shards[inside]], sizes[inside])
    key = key64(ORDER_VERSION, "window", order.name, order.seed, epoch, window)
    packs = _nearly_sorted(packs, order.costs[packs], _spread(len(packs), order.group), key)
    packs = packs[_walk(len(packs), (epoch * len(order.costs) + begin) % order.group, order.group, key)]
    packs.flags.writeable = False
    return packs


def _epoch_order(order: SetOrder, epoch: int) -> tuple[Int64s, Int64s]:
    shards = permutation(len(order.shard_packs), key64(ORDER_VERSION, "shards", order.name, order.seed, epoch))
    ends = np.cumsum(order.shard_packs[shards])
    starts = ends - order.shard_packs[shards]
    cuts = np.flatnonzero(np.diff(starts // WINDOW_PACKS)) + 1
    return shards, np.concatenate([[0], starts[cuts], ends[-1:]])


def _nearly_sorted(packs: Int64s, costs: Int64s, spread: int, key: int) -> Int64s:
    """The packs by cost (of equal cost: hashed), but each moved up by a hashed number of places, less than `spread`."""
    hashes = keyed_hash(packs, key)
    sorting = np.lexsort((hashes, costs))
    # In units of 2**-32 places, so that hardly any two packs end at the same place.
    moves = (hashes[sorting] >> np.uint64(32)).astype(np.int64) * spread
    return packs[sorting[np.argsort((np.arange(len(packs)) << 32) + moves, kind="stable")]]


def _spread(n: int, group: int) -> int:
    """How far hashing moves a pack: far without groups; less far with groups, which should be alike and still vary."""
    return max(n // 16, 256) if group == 1 else max(n // 256, group)


def _walk(n: int, offset: int, group: int, key: int) -> Int64s:
    """int64 [n]: which entry of a window stands at each position, for entries nearly sorted.

    offset: positions of the first group that came before the window. The first and the last group of a window may be
    cut short; their packs come from the middle, as the packs of a step that spans two windows should cost alike.
    """
    head = min(-offset % group, n)
    tail = (n - head) % group
    groups = (n - head) // group
    cut = (n - head - tail) // 2
    whole = np.concatenate([np.arange(cut), np.arange(cut + head + tail, n)]).reshape(groups, group)
    middle = np.arange(cut, cut + head + tail)
    turns = (np.arange(groups) * _coprime_stride(groups) + key % max(groups, 1)) % max(groups, 1)
    return np.concatenate([middle[:head], whole[turns].ravel(), middle[head:]])


def _coprime_stride(n: int) -> int:
    """About n over the golden ratio, and without a common divisor with n."""
    stride = max(n * _GOLDEN >> 32, 1)
    while math.gcd(stride, n) > 1:
        stride += 1
    return stride


def _ranges(starts: Int64s, sizes: Int64s) -> Int64s:
    """The numbers starts[i] ... starts[i] + sizes[i] - 1 of every i, end to end."""
    ends: Int64s = np.cumsum(sizes)
    shifts: Int64s = np.repeat(starts - (ends - sizes), sizes)
    return shifts + np.arange(int(ends[-1]))
