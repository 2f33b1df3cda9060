"""Whose turn it is: positions of a run -> positions in each of its sets of shards.

Turns come in periods of PERIOD; each set has a whole number of turns, spread as evenly as possible. So any stretch of a
run holds the sets in their shares to within about a turn each, and the sequence of each set is taken without a gap. A
turn is a group of packs (see SetOrder). A run that changes its mixture starts a new Phase, in which each set keeps
its place in its sequence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from lmms.configs.errors import ConfigError

PERIOD = 65_536
"""Turns of a period: shares are exact to 1 / PERIOD."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of a run under one mixture."""

    position: int = 0
    """Packs trained when the phase began."""
    turns: tuple[int, ...] = (PERIOD,)
    """Turns of each set in a period; they sum to PERIOD."""
    cursors: tuple[int, ...] = (0,)
    """Packs already taken of each set's sequence when the phase began."""
    group: int = 1
    """Packs of a turn."""

    def __post_init__(self) -> None:
        if sum(self.turns) != PERIOD or min(self.turns) < 1 or len(self.turns) != len(self.cursors):
            raise ConfigError(
                f"turns {self.turns} of sets at {self.cursors}, expected {PERIOD} in all, each at least 1"
            )


def share_turns(weights: Sequence[float]) -> tuple[int, ...]:
    """Turns of each set by these relative weights, by largest remainder. ConfigError for a share below one turn."""
    exact = np.array(weights, np.float64) / math.fsum(weights) * PERIOD
    turns = np.floor(exact).astype(np.int64)
    largest = np.argsort(turns - exact, kind="stable")[: PERIOD - int(turns.sum())]
    turns[largest] += 1
    if turns.min() < 1:
        raise ConfigError(
            f"set {int(turns.argmin())} of the mixture has a share of {exact.min() / PERIOD:.2e}, expected at least"
            f" {1 / PERIOD:.2e}; give it more, or leave it out"
        )
    return tuple(turns.tolist())


def draws(phase: Phase, position: int, count: int) -> list[tuple[npt.NDArray[np.int64], int]]:
    """What the positions [position, position + count) take: for each set which of these positions are the set's (int64,
    ascending), and the position in the set's sequence from which its packs are taken without a gap.

    position: at least the phase's.
    """
    if len(phase.turns) == 1:
        return [(np.arange(count), phase.cursors[0] + position - phase.position)]
    owner, before = _turn_table(phase.turns)
    turn, member = np.divmod(np.arange(count) + (position - phase.position), phase.group)
    owners = owner[turn % PERIOD]
    period, first = divmod(int(turn[0]), PERIOD)
    set_draws = []
    for k, turns in enumerate(phase.turns):
        taken = (period * turns + int(before[k, first])) * phase.group
        start = phase.cursors[k] + taken + (int(member[0]) if owners[0] == k else 0)
        set_draws.append((np.flatnonzero(owners == k), start))
    return set_draws


def cursors_at(phase: Phase, position: int) -> tuple[int, ...]:
    """Packs taken of each set's sequence when `position` packs of the run are trained."""
    return tuple(start for _, start in draws(phase, position, 1))


@lru_cache(maxsize=2)
def _turn_table(turns: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(int64 [PERIOD]: the set of each turn, int64 [sets, PERIOD]: turns of each set before that turn).

    Turn i of a set with n of them stands at the middle of the i-th n-th of the period, as far as turns can.
    """
    owner = np.repeat(np.arange(len(turns)), turns)
    middle = np.concatenate([(2 * np.arange(n) + 1) * (1 << 40) // (2 * n) for n in turns])
    owner = owner[np.lexsort((owner, middle))]
    is_owner = owner == np.arange(len(turns))[:, None]
    return owner, np.cumsum(is_owner, axis=1) - is_owner
