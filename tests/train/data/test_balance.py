"""What ranks lose by waiting: by hand, against a plain walk, and on packs like those of real data."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.contract.hashing import counter_hash
from lmms.train.data.balance import (
    expected_loss,
    in_random_order,
    packs_of_steps,
    repeats,
    step_costs,
    straggler_loss,
)
from lmms.train.data.mixture import PERIOD, Phase
from lmms.train.data.order import WINDOW_PACKS, Order, SetOrder, by_cost, deal, step_packs


def order_of(costs: np.ndarray, global_packs: int, group: int = 1) -> Order:
    one = SetOrder(shard_packs=np.array([len(costs)]), costs=costs, seed=0, name="set", group=group)
    return Order(sets=(one,), phase=Phase(group=group), costs=costs, global_packs=global_packs)


def long_tailed(packs: int) -> np.ndarray:
    """Costs as of packs of text with a few of pictures: 94 % within a quarter, the rest up to four times as dear."""
    u = counter_hash(packs, 1) / 2.0**64
    return (1e9 * np.where(u < 0.94, 0.85 + 0.2 * u, 1 + 3 * ((u - 0.94) / 0.06) ** 2)).astype(np.int64)


def test_loss_by_hand() -> None:
    costs = np.array([[6, 4, 3, 1]])
    # Two ranks, two passes: 6 beside 4, 3 beside 1; the mean rank does 7 while the dearest of each pass do 9.
    steps = np.array([[0, 1, 2, 3]])
    dearest, mean = step_costs(costs, steps, world=2, micro_packs=1)
    assert (dearest.tolist(), mean.tolist()) == ([9.0], [7.0])
    assert straggler_loss(costs, steps, world=2) == pytest.approx(2 / 7)
    # One pass of two packs a rank: 6 + 3 beside 4 + 1.
    assert straggler_loss(costs, steps, world=2, micro_packs=2) == pytest.approx(2 / 7)
    assert straggler_loss(costs, np.array([[0, 2, 1, 3]]), world=2, micro_packs=2) == pytest.approx(3 / 7)
    assert straggler_loss(costs, steps, world=1) == 0
    assert straggler_loss(costs, steps, world=4) == pytest.approx(6 / 3.5 - 1)


def test_ranks_that_wait_twice_wait_for_both_maxima() -> None:
    costs = np.array([[5, 5, 4, 4], [0, 3, 3, 0]])
    steps = np.array([[1, 0, 2, 3]])
    assert straggler_loss(costs, steps, world=2) == pytest.approx((5 + 4 + 3 + 3) / 12 - 1)
    assert straggler_loss(costs.sum(axis=0, keepdims=True), steps, world=2) == pytest.approx((8 + 7) / 12 - 1)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_costs_of_a_step_are_those_of_the_packs_that_ranks_are_dealt(
    global_packs: int, world: int, micro_packs: int, position: int
) -> None:
    order = order_of(long_tailed(100), global_packs)
    packs = by_cost(order, step_packs(order, position))
    dearest, mean = step_costs(order.costs[None], packs[None], world, micro_packs)
    ranks = [deal(packs, rank, world, micro_packs) for rank in range(world)]
    of_passes = [[int(order.costs[own].sum()) * counts for own, counts in passes] for passes in ranks]
    assert dearest.tolist() == [sum(max(side) for side in zip(*of_passes, strict=True))]
    assert mean[0] == pytest.approx(order.costs[packs].sum() / world)


def test_steps_are_taken_as_a_run_takes_them() -> None:
    order = order_of(long_tailed(1_000), 24)
    steps = packs_of_steps(order, 960, 10)
    expected = [by_cost(order, step_packs(order, 960 + 24 * i)) for i in range(10)]
    assert steps.tolist() == [packs.tolist() for packs in expected]


def test_random_order_has_the_same_packs() -> None:
    steps = np.arange(600).reshape(6, 100)
    shuffled = in_random_order(steps)
    assert shuffled.shape == steps.shape
    assert sorted(shuffled.ravel().tolist()) == list(range(600))
    assert all(len(set(row) - set(own)) > 50 for row, own in zip(shuffled.tolist(), steps.tolist(), strict=True))
    assert in_random_order(steps, 1).tolist() != shuffled.tolist()


@pytest.mark.parametrize("world", [8, 64, 512])
def test_groups_of_as_many_as_ranks_lose_little_and_lone_packs_at_most_what_random_order_does(world: int) -> None:
    costs = long_tailed(2 * WINDOW_PACKS)
    order = order_of(costs, 8)
    for packs_a_rank in (1, 4):
        lone, grouped = (expected_loss(order, costs[None], world, packs_a_rank, group) for group in (1, world))
        assert grouped.ordered < 0.02
        assert grouped.random == pytest.approx(lone.random, rel=0.1)
        assert lone.random > 0.2
        if packs_a_rank == 4:
            assert lone.ordered < 0.9 * lone.random


def test_the_larger_the_step_the_less_is_lost_without_groups() -> None:
    costs = long_tailed(WINDOW_PACKS)
    losses = [expected_loss(order_of(costs, 8), costs[None], 8, packs, 1).ordered for packs in (2, 8, 32, 128)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.02


def test_small_sets_are_repeated_until_they_fill_a_window() -> None:
    costs = long_tailed(1_000)
    order = order_of(costs, 8)
    assert repeats(order) == [66]
    halves = np.stack([costs // 2, costs - costs // 2])
    found = expected_loss(order, halves, 64, 4, 64)
    assert found.ordered < 0.02 < found.random
    assert found.ordered_twice == pytest.approx(found.ordered, abs=1e-4)


def test_a_mixture_is_looked_at_in_its_shares() -> None:
    costs = np.concatenate([np.full(100, 1_000), np.full(300, 3_000)])
    sets = tuple(
        SetOrder(shard_packs=np.array([len(own)]), costs=own, seed=0, name=name)
        for name, own in (("a", costs[:100]), ("b", costs[100:]))
    )
    phase = Phase(turns=(PERIOD // 2, PERIOD // 2), cursors=(0, 0))
    order = Order(sets=sets, phase=phase, costs=costs, global_packs=4)
    found = expected_loss(replace(order, global_packs=8), costs[None], 8, 1, 1)
    # Half of the packs of each step are dear, so 8 ranks wait for 3,000 where the mean is 2,000.
    assert found.ordered == pytest.approx(0.5, abs=1e-3)
    assert repeats(order) == [656, 219]
