"""How long ranks wait for one another, from the costs of packs alone.

Every forward and backward pass gathers each layer's weights from all ranks: a pass ends when its most expensive rank
ends, and the time that the other ranks wait is lost. Costs are the model's operations, without what hardware adds.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.hashing import key64, permutation
from lmms.train.data.order import WINDOW_PACKS, Order, step_packs

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class StragglerLoss:
    """Time lost by waiting / time without waiting: sum over passes of most expensive rank / mean rank, minus 1."""

    ordered: float
    random: float
    """The loss with the same packs in a hashed order."""
    ordered_twice: float
    """The loss if ranks wait twice in a pass, after the vision tower and after the language model: maxima are added."""
    random_twice: float


def packs_of_steps(order: Order, position: int, num_steps: int) -> Int64s:
    """int64 [steps, global_packs]: the packs of the steps from a position on, in each step the most expensive first."""
    packs = step_packs(replace(order, global_packs=num_steps * order.global_packs), position)
    steps = packs.reshape(num_steps, order.global_packs)
    return np.take_along_axis(steps, np.lexsort((steps, -order.costs[steps])), axis=1)


def in_random_order(steps: Int64s, seed: int = 0) -> Int64s:
    """The packs of all these steps in a hashed order, cut into as many steps again."""
    return steps.ravel()[permutation(steps.size, key64("random order", seed))].reshape(steps.shape)


def step_costs(
    costs: Int64s, steps: Int64s, world: int, micro_packs: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cost of the most expensive rank and of the mean rank, summed over the passes of a step: float64 [steps] each.

    costs: int64 [waits, packs]; ranks wait for one another after each row. Packs are dealt as order.deal does it; a
    pass that only keeps a rank in step counts as nothing.
    """
    num_steps, packs_a_step = steps.shape
    passes = -(-packs_a_step // (world * micro_packs))
    dealt = np.zeros((len(costs), num_steps, passes * micro_packs * world))
    dealt[:, :, :packs_a_step] = costs[:, steps]
    ranks = dealt.reshape(len(costs), num_steps, passes, micro_packs, world).sum(axis=3)
    return ranks.max(axis=3).sum(axis=(0, 2)), ranks.sum(axis=(0, 2, 3)) / world


def straggler_loss(costs: Int64s, steps: Int64s, world: int, micro_packs: int = 1) -> float:
    """Time lost by waiting, as a share of the time without waiting. The arguments are those of step_costs."""
    highest, mean = step_costs(costs, steps, world, micro_packs)
    return float(highest.sum() / mean.sum() - 1)


def expected_loss(order: Order, costs: Int64s, world: int, packs_a_rank: int, group: int) -> StragglerLoss:
    """The loss of a run over the same sets at another scale, with one pack a pass.

    costs: int64 [2, packs], language model and vision tower; their sum is the order's. Each set is repeated until it
    fills a window, and a window's packs are looked at: what a larger set of the same kind would give.
    """
    order, origin = _at_scale(order, world * packs_a_rank, group)
    steps = packs_of_steps(order, 0, max(WINDOW_PACKS // order.global_packs, 2))
    shuffled = in_random_order(steps)
    once, twice = order.costs[None], costs[:, origin]
    return StragglerLoss(
        ordered=straggler_loss(once, steps, world),
        random=straggler_loss(once, shuffled, world),
        ordered_twice=straggler_loss(twice, steps, world),
        random_twice=straggler_loss(twice, shuffled, world),
    )


def repeats(order: Order) -> list[int]:
    """How often expected_loss has each set."""
    return [-(-WINDOW_PACKS // len(set_order.costs)) for set_order in order.sets]


def _at_scale(order: Order, global_packs: int, group: int) -> tuple[Order, Int64s]:
    """(order over the repeated sets from their start, int64: which pack of the run each of its packs is)."""
    firsts = order.first_packs
    origin = [
        np.tile(np.arange(start, end), times)
        for start, end, times in zip(firsts, firsts[1:], repeats(order), strict=False)
    ]
    sets = tuple(
        replace(
            set_order,
            shard_packs=np.tile(set_order.shard_packs, times),
            costs=np.tile(set_order.costs, times),
            group=group,
        )
        for set_order, times in zip(order.sets, repeats(order), strict=True)
    )
    phase = replace(order.phase, position=0, cursors=(0,) * len(sets), group=group)
    costs = np.concatenate([set_order.costs for set_order in sets])
    return Order(sets=sets, phase=phase, costs=costs, global_packs=global_packs), np.concatenate(origin)
