"""The first phase of a run's order, for tests that need no run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lmms.configs.contract.costs import ModelCost
from lmms.train.data.phases import RunPhase, SetShare

COST = ModelCost(token=1.0, target=1.0, squared_length=0.0, patch=0.0, squared_image=0.0, squared_window=0.0, window=0)


def first_phase(sets: Sequence[SetShare], **changes: Any) -> RunPhase:
    """A phase from the start of a run over these sets, of 4 packs a step unless `changes` says other."""
    phase = RunPhase(
        step=0,
        position=0,
        global_packs=4,
        group_packs=1,
        seed=0,
        cost=COST,
        pass_packs=9.0,
        pack_tokens=9.0,
        sets=tuple(sets),
    )
    return replace(phase, **changes)
