"""Tokens of a step by source, and how even the mix is."""

import numpy as np
import pytest

from lmms.configs.contract.hashing import counter_hash, permutation
from lmms.train.data.sources import Sources, design_effect, design_effects, source_tokens


def sources_of(packs: list[dict[int, int]], names: int) -> Sources:
    """Of packs that hold tokens of each source as said."""
    return Sources(
        names=tuple(f"source {k}" for k in range(names)),
        starts=np.cumsum([0, *map(len, packs)]),
        ids=np.array([source for pack in packs for source in pack], np.int64),
        tokens=np.array([tokens for pack in packs for tokens in pack.values()], np.int64),
    )


def test_tokens_of_a_step_are_those_of_its_packs_by_source() -> None:
    sources = sources_of([{0: 5}, {1: 7, 0: 1}, {2: 4}, {1: 2}], 3)
    steps = np.array([[0, 1], [2, 3], [1, 1]])
    assert source_tokens(sources, steps).tolist() == [[6, 7, 0], [0, 2, 4], [2, 14, 0]]


def test_one_as_in_random_order_nothing_if_all_steps_are_alike_and_as_many_as_packs_if_they_are_of_one_source() -> None:
    sources = sources_of([{i % 4: 10} for i in range(4_000)], 4)
    packs = np.arange(4_000)
    random = [design_effect(sources, permutation(4_000, key).reshape(-1, 16)) for key in range(20)]
    assert np.mean(random) == pytest.approx(1, abs=0.02)
    assert design_effect(sources, packs.reshape(-1, 16)) == 0
    of_one = packs[np.argsort(packs % 4, kind="stable")].reshape(-1, 8)
    assert design_effect(sources, of_one) == pytest.approx(8, rel=0.01)


def test_all_sources_count_by_their_tokens() -> None:
    sizes = (counter_hash(1_000, 5) % np.uint64(1_000)).astype(int).tolist()
    sources = sources_of([{i % 7: 1 + size, 7: 50} for i, size in enumerate(sizes)], 8)
    found = [design_effect(sources, permutation(1_000, key).reshape(-1, 20)) for key in range(100)]
    assert np.mean(found) == pytest.approx(1, abs=0.03)


def test_stretches_of_steps_grow_while_there_are_four() -> None:
    sources = sources_of([{i % 2: 10} for i in range(400)], 2)
    blocks = np.arange(400).reshape(-1, 4, 2).swapaxes(1, 2).reshape(-1, 4)
    found = design_effects(sources, blocks)
    assert list(found) == [1, 4, 16]
    assert found[1] == pytest.approx(design_effect(sources, blocks))
    # Steps of one source each, one after the other: four of them are even.
    assert found[1] == pytest.approx(4, rel=0.02)
    assert found[4] == 0
    assert design_effects(sources, np.arange(12).reshape(3, 4)) == {}


def test_a_single_source_is_always_even() -> None:
    assert design_effect(sources_of([{0: 10}] * 8, 1), np.arange(8).reshape(2, 4)) == 0
