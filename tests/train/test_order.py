"""The order of packs: a permutation per epoch, endless, a function of the position alone."""

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.errors import ConfigError
from lmms.train.order import ORDER_VERSION, Order, micro_steps, rank_share, step_packs


def packs_at(order: Order, start: int, steps: int) -> list[int]:
    starts = range(start, start + steps * order.global_packs, order.global_packs)
    return [pack for position in starts for pack in step_packs(order, position).tolist()]


@given(st.integers(1, 60), st.integers(1, 150), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_every_epoch_holds_every_pack_once_whatever_the_step(num_packs: int, global_packs: int, seed: int) -> None:
    order = Order(num_packs=num_packs, seed=seed, global_packs=global_packs)
    steps = -(-3 * num_packs // global_packs)
    packs = packs_at(order, 0, steps)
    assert len(packs) == steps * global_packs
    for epoch in range(3):
        assert sorted(packs[epoch * num_packs : (epoch + 1) * num_packs]) == list(range(num_packs))


@given(st.integers(1, 60), st.integers(0, 300), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_sequence_depends_on_the_position_alone(num_packs: int, position: int, before: int, after: int) -> None:
    whole = step_packs(Order(num_packs=num_packs, seed=1, global_packs=position + before + after), 0).tolist()
    first = step_packs(Order(num_packs=num_packs, seed=1, global_packs=before), position).tolist()
    second = step_packs(Order(num_packs=num_packs, seed=1, global_packs=after), position + before).tolist()
    assert first + second == whole[position:]


def test_a_resumed_step_is_the_same_after_any_other_was_asked_for() -> None:
    order = Order(num_packs=10, seed=0, global_packs=4)
    expected = step_packs(order, 8).tolist()
    for position in (1_000_000, 0, 39):
        step_packs(order, position)
    assert step_packs(order, 8).tolist() == expected


def test_no_two_pairs_of_seed_and_epoch_share_an_order() -> None:
    orders = [
        tuple(step_packs(Order(num_packs=50, seed=seed, global_packs=50), 50 * epoch).tolist())
        for seed in range(10)
        for epoch in range(10)
    ]
    assert len(set(orders)) == 100


def test_packs_do_not_keep_their_neighbours_from_epoch_to_epoch() -> None:
    order = Order(num_packs=2_000, seed=0, global_packs=2_000)
    first, second = (step_packs(order, epoch * 2_000).tolist() for epoch in (0, 1))
    pairs = [set(pairwise(packs)) for packs in (first, second)]
    assert len(pairs[0] & pairs[1]) < 10


@pytest.mark.parametrize(("world", "micro_packs"), [(1, 1), (1, 12), (2, 3), (3, 2), (4, 1), (6, 2), (12, 1)])
def test_the_packs_of_a_step_do_not_depend_on_ranks_or_accumulation(world: int, micro_packs: int) -> None:
    packs = step_packs(Order(num_packs=20, seed=3, global_packs=12), 13)
    shares = [micro_steps(packs, rank, world, micro_packs) for rank in range(world)]
    assert all([len(micro) for micro in share] == [micro_packs] * (12 // world // micro_packs) for share in shares)
    assert Counter(pack for share in shares for micro in share for pack in micro) == Counter(packs.tolist())


def test_a_rank_takes_every_worldth_pack_in_order() -> None:
    packs = np.arange(12)
    assert rank_share(packs, 1, 4).tolist() == [1, 5, 9]
    assert micro_steps(packs, 1, 2, 3) == [[1, 3, 5], [7, 9, 11]]


def test_a_step_that_ranks_cannot_share_equally_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"data\.global_packs is 8, not a multiple of 6 \(3 ranks x .* 2\)"):
        micro_steps(np.arange(8), 0, 3, 2)


@pytest.mark.parametrize(("num_packs", "global_packs"), [(0, 1), (1, 0)])
def test_an_order_of_nothing_is_refused(num_packs: int, global_packs: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Order(num_packs=num_packs, seed=0, global_packs=global_packs)


def test_sequence_of_this_version_never_changes() -> None:
    packs = step_packs(Order(num_packs=1_009, seed=7, global_packs=4_096), 100)
    assert ORDER_VERSION == "lmms/order/v1"
    assert hashlib.sha256(packs.astype("<i8").tobytes()).hexdigest()[:16] == "9dc8068b41cecddf"
