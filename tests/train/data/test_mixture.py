"""Whose turn it is: each set without a gap, in its share to within a turn, known for any position at once."""

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.errors import ConfigError
from lmms.train.data.mixture import PERIOD, Phase, _turn_table, cursors_at, draws, share_turns

weights = st.lists(st.floats(0.01, 10), min_size=1, max_size=8)


def owners(phase: Phase, position: int, count: int) -> list[int]:
    """The set of each position."""
    found = np.full(count, -1)
    for k, (at, _) in enumerate(draws(phase, position, count)):
        found[at] = k
    return found.tolist()


def phase_of(shares: list[float], group: int = 1, position: int = 0, cursors: tuple[int, ...] | None = None) -> Phase:
    turns = share_turns(shares)
    return Phase(position=position, turns=turns, cursors=cursors or (0,) * len(turns), group=group)


@given(weights, st.integers(1, 9), st.integers(0, 3 * PERIOD), st.integers(1, 400), st.data())
@settings(max_examples=100, deadline=None)
def test_draws_are_those_of_a_walk_from_the_start_of_the_phase(
    shares: list[float], group: int, walked: int, count: int, data: st.DataObject
) -> None:
    cursors = tuple(data.draw(st.lists(st.integers(0, 99), min_size=len(shares), max_size=len(shares))))
    phase = phase_of(shares, group, 1_000, cursors)
    owner, _ = _turn_table(phase.turns)
    sequence = owner[np.arange(walked + count) // group % PERIOD]
    # The walk: take the packs of each turn's set one after the other.
    expected = {k: cursors[k] + int((sequence[:walked] == k).sum()) for k in range(len(shares))}
    assert cursors_at(phase, 1_000 + walked) == tuple(expected.values())
    for k, (at, start) in enumerate(draws(phase, 1_000 + walked, count)):
        assert at.tolist() == np.flatnonzero(sequence[walked:] == k).tolist()
        assert start == expected[k]


@given(weights, st.integers(1, 5), st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(0, 10**15))
@settings(max_examples=100, deadline=None)
def test_each_set_is_taken_without_a_gap_wherever_steps_are_cut(
    shares: list[float], group: int, sizes: list[int], position: int
) -> None:
    phase = phase_of(shares, group)
    taken = list(cursors_at(phase, position))
    for size, end in zip(sizes, accumulate(sizes, initial=position), strict=False):
        for k, (at, start) in enumerate(draws(phase, end, size)):
            assert start == taken[k]
            taken[k] += len(at)
    assert cursors_at(phase, position + sum(sizes)) == tuple(taken)


@given(weights, st.integers(0, 2 * PERIOD), st.integers(0, 2 * PERIOD))
@settings(max_examples=100, deadline=None)
def test_any_stretch_holds_a_set_to_within_a_turn_or_so_of_its_share(
    shares: list[float], first: int, turns: int
) -> None:
    """Up to a point x of the period each set j has had its share n_j * x to within 1/2, and so all turns are x * PERIOD
    to within K / 2. A stretch has two ends: set k is off by at most 1 + share_k * (K - 2)."""
    phase = phase_of(shares)
    before, after = (np.array(cursors_at(phase, position)) for position in (first, first + turns))
    share = np.array(phase.turns) / PERIOD
    bound = np.maximum(1 + share * (len(shares) - 2), 0) + 1e-6
    assert (np.abs(after - before - share * turns) <= bound).all()


def test_a_period_holds_exactly_the_turns() -> None:
    phase = phase_of([5, 3, 0.01], group=4)
    for position in (0, 4 * 12_345):
        taken = np.subtract(cursors_at(phase, position + 4 * PERIOD), cursors_at(phase, position))
        assert taken.tolist() == [4 * turns for turns in phase.turns]


@pytest.mark.parametrize("group", [1, 3, 8])
def test_a_turn_is_a_whole_group_of_one_set(group: int) -> None:
    phase = phase_of([5, 3, 1], group)
    groups = np.reshape(owners(phase, 0, 300 * group), (300, group))
    assert (groups == groups[:, :1]).all()
    assert all(start % group == 0 for turn in range(300) for start in cursors_at(phase, turn * group))


def test_a_set_alone_has_every_turn() -> None:
    (draw,) = draws(Phase(position=5, cursors=(100,)), 8, 3)
    assert (draw[0].tolist(), draw[1]) == ([0, 1, 2], 103)


def test_rare_sets_are_spread_evenly() -> None:
    found = np.flatnonzero(np.equal(owners(phase_of([999, 1]), 0, PERIOD), 1))
    assert len(found) == 66
    assert set(np.diff(found).tolist()) <= {992, 993, 994}


@given(weights)
@settings(max_examples=100, deadline=None)
def test_turns_are_the_shares_rounded_and_sum_to_a_period(shares: list[float]) -> None:
    turns = share_turns(shares)
    assert sum(turns) == PERIOD
    exact = np.array(shares) / sum(shares) * PERIOD
    assert (np.abs(turns - exact) < 1).all()
    assert share_turns([share * 2**20 for share in shares]) == turns


def test_equal_shares_that_do_not_divide_a_period_are_told_apart_by_their_number() -> None:
    assert share_turns([1, 1, 1]) == (21846, 21845, 21845)


def test_a_share_too_small_for_a_turn_is_refused() -> None:
    assert share_turns([PERIOD - 1, 1]) == (PERIOD - 1, 1)
    with pytest.raises(
        ConfigError, match=r"set 1 of the mixture has a share of 5\.00e-07, expected at least 1\.53e-05"
    ):
        share_turns([1, 0.5e-6])


@pytest.mark.parametrize(
    ("turns", "cursors"), [((1, 2), (0, 0)), ((PERIOD, 0), (0, 0)), ((PERIOD,), (0, 0)), ((PERIOD - 1, 1), (0,))]
)
def test_a_phase_whose_turns_are_no_period_is_refused(turns: tuple[int, ...], cursors: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="expected 65536 in all, each at least 1"):
        Phase(turns=turns, cursors=cursors)
