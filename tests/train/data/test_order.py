"""The order of packs: a permutation in each epoch, endless, a function of the position alone, the same for ever.

These tests need nothing but numpy, pytest and hypothesis: tools/numpy_goldens runs them on other versions of numpy.
"""

import hashlib
import re
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.contract.hashing import counter_hash
from lmms.configs.errors import ConfigError
from lmms.train.data import order as order_module
from lmms.train.data.mixture import PERIOD, Phase, draws, share_turns
from lmms.train.data.order import (
    ORDER_VERSION,
    Order,
    SetOrder,
    by_cost,
    deal,
    epoch_order,
    set_packs,
    shard_of,
    step_packs,
)
from lmms.train.data.upcoming import Evaluated, marks, next_shards, upcoming_shards

shard_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)
"""With windows of 16 packs there are windows of many shards, and shards larger than a window."""


@contextmanager
def windows_of(packs: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "WINDOW_PACKS", packs)
        yield


def set_order(
    shard_packs: Iterable[int], seed: int = 0, group: int = 1, name: str = "set", costs: int = 10**6
) -> SetOrder:
    sizes = np.array(list(shard_packs), np.int64)
    hashed = counter_hash(int(sizes.sum()), 9) % np.uint64(costs)
    return SetOrder(shard_packs=sizes, costs=hashed.astype(np.int64), seed=seed, name=name, group=group)


def run_order(sets: list[SetOrder], global_packs: int, weights: Iterable[float] = (1,)) -> Order:
    turns = share_turns(list(weights))
    phase = Phase(turns=turns, cursors=(0,) * len(turns), group=sets[0].group)
    costs = np.concatenate([one.costs for one in sets])
    return Order(sets=tuple(sets), phase=phase, costs=costs, global_packs=global_packs)


def needed(order: Order, position: int) -> list[tuple[int, int]]:
    return list(next_shards(order, marks(order, position), {}))


def packs_at(order: Order, start: int, steps: int) -> list[int]:
    starts = range(start, start + steps * order.global_packs, order.global_packs)
    return [pack for position in starts for pack in step_packs(order, position).tolist()]


@given(shard_sizes, st.integers(1, 100), st.integers(1, 20), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_every_epoch_holds_every_pack_once(sizes: list[int], global_packs: int, group: int, seed: int) -> None:
    with windows_of(16):
        order = run_order([set_order(sizes, seed, group)], global_packs)
        epoch = sum(sizes)
        packs = packs_at(order, 0, -(-3 * epoch // global_packs))
    for number in range(3):
        assert sorted(packs[number * epoch : (number + 1) * epoch]) == list(range(epoch))


@given(shard_sizes, st.integers(0, 400), st.integers(1, 50), st.integers(1, 50), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_the_sequence_depends_on_the_position_alone(
    sizes: list[int], position: int, before: int, after: int, group: int
) -> None:
    with windows_of(16):
        whole = step_packs(run_order([set_order(sizes, group=group)], position + before + after), 0).tolist()
        first = step_packs(run_order([set_order(sizes, group=group)], before), position).tolist()
        second = step_packs(run_order([set_order(sizes, group=group)], after), position + before).tolist()
    assert first + second == whole[position:]


@given(st.lists(shard_sizes, min_size=2, max_size=4), st.integers(1, 40), st.integers(1, 6), st.data())
@settings(max_examples=60, deadline=None)
def test_a_mixture_takes_each_set_in_its_own_order(
    sizes: list[list[int]], global_packs: int, group: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    with windows_of(16):
        sets = [set_order(one, group=group, name=str(k)) for k, one in enumerate(sizes)]
        order = run_order(sets, global_packs, weights)
        packs = np.array(packs_at(order, 0, 1 + 300 // global_packs))
        for k, one in enumerate(sets):
            first, last = order.first_packs[k], order.first_packs[k + 1]
            taken = packs[(packs >= first) & (packs < last)] - first
            assert taken.tolist() == set_packs(one, 0, len(taken)).tolist()


def test_a_step_is_the_same_after_any_other_was_asked_for() -> None:
    order = run_order([set_order([3, 4, 3])], 4)
    expected = step_packs(order, 8).tolist()
    for position in (1_000_000, 0, 39):
        step_packs(order, position)
    assert step_packs(order, 8).tolist() == expected
    assert step_packs(run_order([set_order([3, 4, 3])], 4), 8).tolist() == expected


@pytest.mark.parametrize("num_packs", [10, 50, 1_000])
def test_no_two_of_seed_epoch_and_set_share_an_order(num_packs: int) -> None:
    orders = [
        tuple(set_packs(set_order([num_packs], seed, name=name), epoch * num_packs, (epoch + 1) * num_packs).tolist())
        for seed in range(8)
        for epoch in range(8)
        for name in ("a", "b")
    ]
    assert len(set(orders)) == 128


def test_a_window_is_whole_shards_and_ends_with_the_one_that_fills_it() -> None:
    sizes = [5, 9, 2, 30, 7, 7, 1, 4, 12, 3]
    with windows_of(16):
        order = set_order(sizes)
        for epoch in range(4):
            shards, starts = epoch_order(order, epoch)
            assert sorted(shards.tolist()) == list(range(10))
            ends = np.cumsum(np.array(sizes)[shards])
            assert set(starts.tolist()) <= {0, *ends.tolist()}
            for window, (start, end) in enumerate(pairwise(starts.tolist())):
                packs = order_module.window_packs(order, epoch, window)
                inside = shards[(ends > start) & (ends <= end)]
                assert set(shard_of(order, packs).tolist()) == set(inside.tolist())
                assert len(packs) == end - start < 16 + 30


@pytest.mark.parametrize("group", [1, 8, 64, 700])
def test_packs_in_a_row_are_a_sample_of_all_costs_and_a_group_is_alike(group: int) -> None:
    order = set_order([10_000], group=group)
    rank = np.argsort(np.argsort(order.costs, kind="stable"))
    places = rank[set_packs(order, 0, 10_000)]
    groups = places[: 10_000 // group * group].reshape(-1, group)
    spread = order_module._spread(10_000, group)
    whole = np.ptp(groups, axis=1)
    # Certain, for entries in a row of what is sorted by rank + move. One group is cut around the middle.
    assert np.sort(whole)[:-1].max(initial=0) <= spread + group
    # A golden-ratio walk: the centres of q groups in a row leave no gap much above 1 / q.
    centres = groups.mean(axis=1)
    for q in (4, 8):
        for i in range(0, len(centres) - q, q):
            gaps = np.diff([0, *sorted(centres[i : i + q]), 10_000])
            assert gaps.max() <= 2.7 * 10_000 / q + spread + group


def test_groups_are_counted_from_the_start_of_the_sequence_through_windows_and_epochs() -> None:
    with windows_of(512):
        order = set_order([50] * 41, group=8)
        rank = np.argsort(np.argsort(order.costs, kind="stable"))
        places = rank[set_packs(order, 0, 3 * 2_050)][: 3 * 2_050 // 8 * 8].reshape(-1, 8)
    # Within its window a group spans less than 2 * 8 ranks, a few times that in the whole set; groups that span two
    # windows are of packs from the middle of both.
    assert np.quantile(np.ptp(places, axis=1), 0.95) < 200
    assert np.ptp(places, axis=1).max() < 500
    shifted = rank[set_packs(order, 4, 3 * 2_050)][: 3 * 2_050 // 8 * 8 - 8].reshape(-1, 8)
    assert np.quantile(np.ptp(shifted, axis=1), 0.5) > 500


def test_packs_of_equal_cost_are_shuffled() -> None:
    order = set_order([2_000], group=8, costs=1)
    packs = set_packs(order, 0, 2_000).reshape(-1, 8)
    assert np.median(np.ptp(packs, axis=1)) > 1_000


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_any_ranks_train_the_same_packs_of_a_step_in_equally_many_passes(
    global_packs: int, world: int, micro_packs: int
) -> None:
    order = run_order([set_order([25, 30])], global_packs)
    packs = by_cost(order, step_packs(order, 13))
    ranks = [deal(packs, rank, world, micro_packs) for rank in range(world)]
    assert len({len(passes) for passes in ranks}) == 1
    assert all(1 <= len(own) <= micro_packs for passes in ranks for own, _ in passes)
    counted = Counter(pack for passes in ranks for own, counts in passes if counts for pack in own)
    assert counted == Counter(packs.tolist())
    for passes in ranks:
        assert [counts for _, counts in passes] == sorted((counts for _, counts in passes), reverse=True)
        assert all(own == [packs[-1]] for own, counts in passes if not counts)
    side_by_side = world * micro_packs
    for m in range(len(ranks[0])):
        together = [pack for passes in ranks if passes[m][1] for pack in passes[m][0]]
        assert Counter(together) == Counter(packs[m * side_by_side : (m + 1) * side_by_side].tolist())


def test_a_rank_takes_every_worldth_pack_the_dearest_first() -> None:
    order = run_order([set_order([12])], 12)
    packs = by_cost(order, np.arange(12))
    assert sorted(order.costs[packs], reverse=True) == order.costs[packs].tolist()
    assert deal(packs, 1, 4, 1) == [([packs[1]], True), ([packs[5]], True), ([packs[9]], True)]
    assert deal(packs, 1, 2, 4) == [(packs[[1, 3, 5, 7]].tolist(), True), (packs[[9, 11]].tolist(), True)]
    assert deal(packs, 4, 5, 2) == [(packs[[4, 9]].tolist(), True), ([packs[11]], False)]


def test_of_equal_cost_the_lowest_number_comes_first() -> None:
    order = run_order([set_order([6], costs=1)], 6)
    assert by_cost(order, np.array([3, 5, 0, 1])).tolist() == [0, 1, 3, 5]


@given(shard_sizes, st.integers(0, 300))
@settings(max_examples=60, deadline=None)
def test_upcoming_shards_come_in_the_order_of_their_next_use(sizes: list[int], position: int) -> None:
    with windows_of(16):
        one = set_order(sizes)
        starts = [
            epoch * sum(sizes) + start
            for epoch in range(2 + position // sum(sizes) + 1)
            for start in epoch_order(one, epoch)[1][:-1].tolist()
        ]
        end = [start for start in starts if start > position][1]
        used = shard_of(one, set_packs(one, position, end)).tolist()
        assert needed(run_order([one], 4), position) == [(0, shard) for shard in dict.fromkeys(used)]


def test_upcoming_shards_of_a_mixture_are_those_of_its_sets_merged_by_their_shares() -> None:
    with windows_of(64):
        sets = [set_order([8] * 40, group=2, name=str(k)) for k in range(3)]
        order = run_order(sets, 12, [5, 2, 1])
        ahead = needed(order, 120)
        uses: dict[tuple[int, int], int] = {}
        for k, (at, start) in enumerate(draws(order.phase, 120, 3_000)):
            for use, shard in zip(at, shard_of(sets[k], set_packs(sets[k], start, start + len(at))), strict=True):
                uses.setdefault((k, int(shard)), int(use))
        assert all(8 <= sum(k == j for j, _ in ahead) <= 16 for k in range(3))
        # A turn of the rarest set comes every 8 turns of 2 packs.
        assert all(uses[one] <= uses[other] + 32 for one, other in pairwise(ahead))


def test_the_upcoming_shards_are_listed_anew_some_times_a_window_and_from_what_has_changed() -> None:
    """In between it may name shards that are done with, but none that is needed is missing."""
    sets = [set_order([4] * 320, name=str(k)) for k in range(2)]
    order = run_order(sets, 8, [3, 1])
    places = [marks(order, position) for position in range(0, 1_280, 8)]
    assert len(set(places)) == 48
    known: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for position, at in zip(range(0, 1_280, 8), places, strict=True):
        found = next_shards(order, at, known)
        assert len(known) == 2
        assert list(found) == list(next_shards(order, at, {}))
        step = {(k, int(shard)) for k in (0, 1) for shard in shards_of_step(order, k, position)}
        assert step <= set(found)


def shards_of_step(order: Order, k: int, position: int) -> list[int]:
    at, start = draws(order.phase, position, order.global_packs)[k]
    return [int(shard) for shard in shard_of(order.sets[k], set_packs(order.sets[k], start, start + len(at)))]


def test_what_else_is_needed_stands_where_its_use_is() -> None:
    order = run_order([set_order([4] * 320)], 8)
    plain = needed(order, 0)
    at = marks(order, 0)
    assert next_shards(order, at, {}, {(1, 7): -1.0})[0] == (1, 7)
    assert list(next_shards(order, at, {}, {(1, 7): 1e9})) == [*plain, (1, 7)]
    among = list(next_shards(order, at, {}, {(1, 7): 99.5}))
    assert [one for one in among if one != (1, 7)] == plain
    first = set(shard_of(order.sets[0], set_packs(order.sets[0], 0, 100)).tolist())
    assert {shard for _, shard in among[: among.index((1, 7))]} == first


def test_the_shards_of_an_evaluation_are_needed_before_it_begins() -> None:
    """Far from it the training's come first; the same list stands until a mark or the evaluation is passed."""
    order = run_order([set_order([4] * 320)], 8)
    held_out = ((1, 0), (1, 1))
    upcoming = upcoming_shards(order, Evaluated(shards=held_out, next_step=lambda step: 20 if step <= 20 else 160))
    lists = [upcoming(step, 8 * (step - 1)) for step in range(1, 31)]
    assert all({*needed(order, 8 * i), *held_out} == set(shards) for i, shards in enumerate(lists))
    assert lists[19].index((1, 1)) < 30
    assert lists[20].index((1, 0)) > 100
    assert lists[19] is not lists[20]
    assert len({id(shards) for shards in lists}) < 15
    assert list(upcoming_shards(order)(1, 0)) == needed(order, 0)


def test_no_number_of_sets_makes_a_step_compute_a_window_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Counter[str]()
    window = order_module._window_packs

    def counted(order: SetOrder, epoch: int, number: int) -> np.ndarray:  # type: ignore[type-arg]
        made[order.name] += 1
        return window(order, epoch, number)

    monkeypatch.setattr(order_module, "_window_packs", counted)
    sets = [set_order([8] * 50, name=str(k)) for k in range(200)]
    order = run_order(sets, 400, [1] * 200)
    for step in range(5):
        step_packs(order, 400 * step)
        needed(order, 400 * step)
    assert set(made.values()) == {2}
    assert len(made) == 200


def test_a_set_keeps_a_window_or_two_however_far_it_is_read() -> None:
    with windows_of(64):
        one = set_order([8] * 100)
        expected = set_packs(one, 0, 8_000)
        assert len(one._windows) <= 2
        assert len(one._epochs) <= 2
        fresh = [set_packs(set_order([8] * 100), start, start + 80).tolist() for start in range(0, 8_000, 800)]
        assert fresh == [expected[start : start + 80].tolist() for start in range(0, 8_000, 800)]


@pytest.mark.parametrize(("sizes", "packs", "group"), [([], 0, 1), ([3], 4, 1), ([3], 3, 0)])
def test_an_order_of_nothing_is_refused(sizes: list[int], packs: int, group: int) -> None:
    with pytest.raises(ConfigError, match="at least one of each and as many packs as the shards hold"):
        SetOrder(shard_packs=np.array(sizes), costs=np.ones(packs, np.int64), seed=0, name="", group=group)


def test_a_run_whose_parts_do_not_fit_is_refused() -> None:
    one = set_order([4], group=2)
    with pytest.raises(ConfigError, match="0 packs a step, expected at least 1"):
        run_order([one], 0)
    with pytest.raises(ConfigError, match=r"1 sets in groups of \{1, 2\}"):
        Order(sets=(one,), phase=Phase(), costs=one.costs, global_packs=2)
    with pytest.raises(ConfigError, match="2 sets in groups of"):
        run_order([one, one], 2)


def test_a_million_packs_in_a_thousand_shards_come_once_an_epoch() -> None:
    check_epoch(set_order(1 + (counter_hash(1_000, 3) % np.uint64(2_000)).astype(np.int64), group=8), 1)


@pytest.mark.campaign
def test_ten_million_packs_in_ten_thousand_shards_come_once_an_epoch() -> None:
    for group in (1, 512):
        check_epoch(set_order([1_000] * 10_000, group=group), 1)


def test_a_seek_holds_a_window_and_not_the_data_set() -> None:
    """A window and its sorting, and the tables of shards; the costs alone of all packs are 16 MB."""
    order = run_order([set_order([1_000] * 2_000)], 256)
    tracemalloc.start()
    step_packs(order, 1_234_567)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6


def check_epoch(order: SetOrder, epoch: int) -> None:
    num_packs = len(order.costs)
    packs = set_packs(order, epoch * num_packs, (epoch + 1) * num_packs)
    assert np.array_equal(np.bincount(packs, minlength=num_packs), np.ones(num_packs))


def digest(packs: np.ndarray) -> str:
    return hashlib.sha256(packs.astype("<i8").tobytes()).hexdigest()[:16]


def synthetic(seed: int, group: int, name: str) -> SetOrder:
    """About 200 k packs in shards of 1 to 2,000: several windows."""
    return set_order(1 + (counter_hash(200, 5) % np.uint64(2_000)).astype(np.int64), seed, group, name)


@pytest.mark.parametrize(
    ("group", "position", "expected"),
    [
        (1, 0, "3f64170833b6cfe0"),
        (1, 10**12, "9e32091133c6fc1a"),
        (8, 0, "645986a163ca5109"),
        (8, 123_456, "9cb033da7aa634dd"),
        (512, 65_000, "4817a781f5d4669a"),
    ],
)
def test_the_sequence_of_this_version_never_changes(group: int, position: int, expected: str) -> None:
    assert ORDER_VERSION == "lmms/order/v2"
    order = run_order([synthetic(7, group, "one")], 4_096)
    assert digest(step_packs(order, position)) == expected


def test_the_sequence_of_a_mixture_never_changes() -> None:
    sets = [synthetic(7, 4, "one"), synthetic(7, 4, "two"), set_order([100, 100], 7, 4, "three")]
    order = run_order(sets, 4_096, [5, 3, 0.1])
    assert order.phase.turns == (40454, 24273, 809)
    steps = [step_packs(order, position) for position in (0, PERIOD * 4 - 100, 10**12)]
    assert digest(np.concatenate(steps)) == "a6fcce857f2b7274"


@pytest.mark.parametrize(
    "module", ["train/data/order.py", "train/data/mixture.py", "configs/contract/hashing.py", "configs/errors.py"]
)
def test_the_order_is_made_of_numpy_without_its_generators(module: str) -> None:
    """So that it can be checked on any version of numpy, and that none can change it."""
    source = (Path(__file__).resolve().parents[3] / module).read_text()
    imported = {name.split(".")[0] for name in re.findall(r"^\s*(?:import|from) (\S+)", source, re.MULTILINE)}
    assert imported - set(sys.stdlib_module_names) <= {"numpy", "lmms"}
    assert set(re.findall(r"from (lmms\.\S+)", source)) <= {
        *("lmms.configs.errors", "lmms.configs.contract.hashing", "lmms.train.data.mixture")
    }
    assert not re.search(r"random|default_rng|\bshuffle\(", re.sub(r'"""[^"]*"""', "", source))
