"""What the order does to a run's statistics: the mix of sources from step to step, and which packs meet again.

On packs as they come out of a build: most of one source, some of two, and a source's packs cost alike.
"""

from itertools import combinations

import numpy as np
import pytest

from lmms.configs.contract.hashing import counter_hash, key64
from lmms.train.data import order as order_module
from lmms.train.data.balance import in_random_order, packs_of_steps
from lmms.train.data.mixture import Phase
from lmms.train.data.order import Order, SetOrder, set_packs
from lmms.train.data.sources import Sources, design_effect

SHARES = np.array([0.4, 0.2, 0.1, 0.1, 0.06, 0.05, 0.04, 0.03, 0.01, 0.01])
COSTS = np.array([1.0, 0.9, 1.05, 0.95, 1.2, 0.85, 1.5, 2.0, 2.5, 3.5])
"""Of a pack of each source; packs of a source differ by 10 %."""


def drawn(packs: int, name: str) -> np.ndarray:
    """float64 [packs], even in [0, 1)."""
    return counter_hash(packs, key64(name)) / 2.0**64


def made_packs(packs: int) -> tuple[Sources, np.ndarray]:
    """(sources, costs): about every other pack has a fifth of its 16,384 tokens from a second source."""
    first, second = (np.searchsorted(np.cumsum(SHARES), drawn(packs, name)) for name in ("first", "second"))
    mixed = (drawn(packs, "mixed") < 0.5) & (first != second)
    starts = np.cumsum(np.concatenate([[0], 1 + mixed]))
    ids, tokens = np.empty(starts[-1], np.int64), np.full(starts[-1], 16_384)
    ids[starts[:-1]] = first
    ids[starts[1:][mixed] - 1] = second[mixed]
    tokens[starts[:-1][mixed]], tokens[starts[1:][mixed] - 1] = 13_108, 3_276
    costs = 1e12 * (COSTS[first] * np.where(mixed, 0.8, 1) + COSTS[second] * np.where(mixed, 0.2, 0))
    names = tuple(f"source {k}" for k in range(len(SHARES)))
    costs *= 0.95 + 0.1 * drawn(packs, "cost")
    return Sources(names=names, starts=starts, ids=ids, tokens=tokens), costs.astype(np.int64)


def order_of(costs: np.ndarray, global_packs: int, group: int = 1, shard_packs: int = 256, seed: int = 0) -> Order:
    sizes = np.full(len(costs) // shard_packs, shard_packs)
    one = SetOrder(shard_packs=sizes, costs=costs, seed=seed, name="set", group=group)
    return Order(sets=(one,), phase=Phase(group=group), costs=costs, global_packs=global_packs)


@pytest.mark.parametrize("global_packs", [8, 64, 256, 1_024])
def test_steps_mix_sources_at_least_as_well_as_random_order(global_packs: int) -> None:
    """The bound: the variance of a step's tokens of each source is that of random order or less."""
    sources, costs = made_packs(65_536)
    steps = packs_of_steps(order_of(costs, global_packs), 0, 65_536 // global_packs)
    assert design_effect(sources, in_random_order(steps)) == pytest.approx(1, abs=0.2)
    assert design_effect(sources, steps) < 0.7
    for length in (4, 16):
        assert design_effect(sources, steps.reshape(len(steps) // length, -1)) < 0.7


@pytest.mark.parametrize("global_packs", [8, 64])
def test_steps_mix_sources_as_random_order_does_where_cost_says_nothing_of_them(global_packs: int) -> None:
    sources, _ = made_packs(65_536)
    costs = 10**12 + (10**12 * drawn(65_536, "any")).astype(np.int64)
    steps = packs_of_steps(order_of(costs, global_packs), 0, 65_536 // global_packs)
    # 65,536 / G steps of about nine free shares each: a standard error of 0.005 and 0.015.
    assert design_effect(sources, steps) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("group", "over_64_steps"), [(8, 1), (64, 4)])
def test_groups_mix_sources_less_within_a_step_and_better_over_more(group: int, over_64_steps: float) -> None:
    """The bound within a step: a group counts as one pack, so the variance is at most `group` times that of random
    order. The walk over all costs then brings it down, to that of random order where groups are small."""
    sources, costs = made_packs(65_536)
    steps = packs_of_steps(order_of(costs, group, group), 0, 65_536 // group)
    effects = [design_effect(sources, steps.reshape(len(steps) // length, -1)) for length in (1, 4, 16, 64)]
    assert group / 3 < effects[0] <= group
    assert effects == sorted(effects, reverse=True)
    assert effects[-1] <= over_64_steps


def test_a_window_has_the_mix_of_the_data_set_whatever_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shards are drawn by hash, and a build permutes packs before it fills shards."""
    monkeypatch.setattr(order_module, "WINDOW_PACKS", 1_024)
    sources, costs = made_packs(102_400)
    effects = []
    for seed in range(4):
        windows = [packs_of_steps(order_of(costs, 1_024, group, 128, seed), 0, 100) for group in (1, 8)]
        assert np.array_equal(*(np.sort(steps, axis=1) for steps in windows))
        effects.append(design_effect(sources, windows[0]))
    # 400 windows of about nine free shares.
    assert np.mean(effects) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("packs", "global_packs"), [(1_024, 8), (1_024, 32), (65_536, 64)])
def test_packs_of_a_step_meet_again_in_a_step_as_often_as_by_chance(packs: int, global_packs: int) -> None:
    _, costs = made_packs(packs)
    order = order_of(costs, global_packs)
    step = np.empty((12, packs), np.int64)
    for epoch, own in enumerate(step):
        own[set_packs(order.sets[0], epoch * packs, (epoch + 1) * packs)] = np.arange(packs) // global_packs
    again = []
    for one, other in combinations(step, 2):
        shared = np.bincount(np.unique(one * packs + other, return_counts=True)[1])
        pairs = np.arange(len(shared)) * (np.arange(len(shared)) - 1) // 2
        again.append(int(shared @ pairs))
    chance = (global_packs - 1) / (packs - 1) * (packs * (global_packs - 1) / 2)
    assert np.mean(again) == pytest.approx(chance, rel=0.1)


@pytest.mark.parametrize("packs", [100, 1_000, 20_000])
def test_neighbours_are_seldom_neighbours_again(packs: int) -> None:
    """By chance 2 of the neighbours of one epoch are so in another one. The walk joins what costs so much apart as its
    stride, so they are more, but never above one in 200 of a large set, or 6 times chance."""
    _, costs = made_packs(packs)
    order = order_of(costs, 8, shard_packs=packs)
    pairs = []
    for epoch in range(12):
        row = set_packs(order.sets[0], epoch * packs, (epoch + 1) * packs)
        pairs.append(np.minimum(row[:-1], row[1:]) * packs + np.maximum(row[:-1], row[1:]))
    again = np.mean([len(np.intersect1d(one, other)) for one, other in combinations(pairs, 2)])
    assert again < 2 * 7
    assert packs < 1_000 or again / packs < 1 / 200


def test_no_pack_is_early_or_late_in_every_epoch() -> None:
    _, costs = made_packs(512)
    order = order_of(costs, 8)
    epochs = 400
    place = np.empty((epochs, 512))
    for epoch in range(epochs):
        place[epoch, set_packs(order.sets[0], epoch * 512, (epoch + 1) * 512)] = np.arange(512)
    means = place.mean(axis=0)
    assert np.abs(means - 255.5).max() < 5 * 512 / np.sqrt(12 * epochs)
    assert np.abs(np.corrcoef(place)[np.triu_indices(epochs, 1)]).mean() < 0.05
