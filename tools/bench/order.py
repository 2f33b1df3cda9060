"""The cost of the order: seeking, stepping, a whole epoch, memory; by default for 10 M packs in 10 k shards.

    python tools/bench/order.py [PACKS] [SHARDS]

Needs numpy and lmms alone. Each seek is cold: in a new object, which has computed no tables yet.
"""

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from lmms.configs.contract.hashing import counter_hash
from lmms.train.data.mixture import Phase
from lmms.train.data.order import Order, SetOrder, set_packs, step_packs
from lmms.train.data.upcoming import marks, next_shards

GLOBAL_PACKS = 256


def fresh(packs: int, shards: int, group: int) -> Order:
    """An order that has no tables yet."""
    costs = (10**12 + counter_hash(packs, 1) % np.uint64(10**12)).astype(np.int64)
    sizes = np.bincount(np.arange(packs) * shards // packs)
    set_order = SetOrder(shard_packs=sizes, costs=costs, seed=0, name="bench", group=group)
    return Order(sets=(set_order,), phase=Phase(group=group), costs=costs, global_packs=GLOBAL_PACKS)


def milliseconds(call: Callable[..., object], *arguments: object) -> float:
    """The milliseconds of one call."""
    start = time.perf_counter()
    call(*arguments)
    return 1e3 * (time.perf_counter() - start)


def peak_megabytes(call: Callable[..., object], *arguments: object) -> float:
    """The megabytes that one call has allocated at its peak."""
    tracemalloc.start()
    call(*arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def report(packs: int, shards: int, group: int) -> str:
    """The figures of one grouping."""
    middle = packs // 2 // GLOBAL_PACKS * GLOBAL_PACKS
    cold = [milliseconds(step_packs, fresh(packs, shards, group), middle) for _ in range(5)]
    peak = peak_megabytes(step_packs, fresh(packs, shards, group), middle)
    order = fresh(packs, shards, group)
    warm = [milliseconds(step_packs, order, middle + i * GLOBAL_PACKS) for i in range(100)]
    ahead = [milliseconds(next_shards, order, marks(order, middle + i * 1024), {}) for i in range(20)]
    epoch = milliseconds(set_packs, order.sets[0], 0, packs)
    once = np.array_equal(np.sort(set_packs(order.sets[0], packs, 2 * packs)), np.arange(packs))
    return (
        f"group {group}: cold seek {statistics.median(cold):.1f} ms ({max(cold):.1f} at most), {peak:.1f} MB;"
        f" a step {statistics.median(warm):.3f} ms, look-ahead {statistics.median(ahead):.1f} ms;"
        f" an epoch {epoch / 1e3:.2f} s, each pack once: {once}"
    )


if __name__ == "__main__":
    packs, shards = [int(word) for word in sys.argv[1:]] or [10_000_000, 10_000]
    for group in (1, 512):
        print(report(packs, shards, group))
