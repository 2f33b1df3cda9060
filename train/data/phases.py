"""What a run trained on, for how long: phases.json in its output folder, and in every checkpoint.

A run has one phase, unless the run was resumed with another mixture or another number of packs a step. A phase holds
all that its order is made of, so that `lmms inspect step` finds the records of any step without the run's config.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lmms.configs.contract.costs import ModelCost
from lmms.configs.errors import TrainError
from lmms.configs.files import write_whole
from lmms.configs.settings.train import TrainConfig
from lmms.train.data.mixture import Phase, cursors_at
from lmms.train.data.order import Order
from lmms.train.data.sets import Sets, make_order, mixture_turns, pack_tokens, pass_packs

PHASES_NAME = "phases.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SetShare:
    """One set of shards in a phase."""

    shards: str
    """Folder or URL of the set."""
    index: str
    """The hash of its index.json."""
    turns: int
    cursor: int
    """See mixture.Phase."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunPhase:
    """The order of a run, from `step` on."""

    step: int
    """Steps taken before the phase; `position` packs were trained in these steps."""
    position: int
    global_packs: int
    group_packs: int
    seed: int
    cost: ModelCost
    pass_packs: float
    """Packs of one pass over the shards, or over the mixture."""
    pack_tokens: float
    """Mean tokens of a pack."""
    sets: tuple[SetShare, ...]

    @property
    def phase(self) -> Phase:
        """Whose turn it is in this phase."""
        return Phase(
            position=self.position,
            turns=tuple(share.turns for share in self.sets),
            cursors=tuple(share.cursor for share in self.sets),
            group=self.group_packs,
        )


def start_phase(config: TrainConfig, sets: Sets, cost: ModelCost) -> RunPhase:
    """The phase of a run that starts with these settings."""
    given = config.data.shares
    places = zip(given, sets.datasets, mixture_turns(sets, given), strict=True)
    return RunPhase(
        step=0,
        position=0,
        global_packs=config.data.global_packs,
        group_packs=config.data.group_packs,
        seed=config.seed,
        cost=cost,
        pass_packs=pass_packs(sets, given),
        pack_tokens=pack_tokens(sets, mixture_turns(sets, given)),
        sets=tuple(
            SetShare(shards=share.shards, index=dataset.index_hash, turns=turns, cursor=0)
            for share, dataset, turns in places
        ),
    )


def order_of(sets: Sets, phase: RunPhase) -> Order:
    """The order of a run in one of its phases."""
    return make_order(sets, phase.phase, phase.cost, phase.seed, phase.global_packs)


def run_steps(config: TrainConfig, phases: Sequence[RunPhase]) -> int:
    """Steps of the whole run, of which the last may go past max_epochs or max_tokens.

    The number depends on nothing but the settings in each phase: a resumed run computes the same number.
    """
    if config.max_steps is not None:
        return config.max_steps
    done, last = 0.0, phases[-1]
    for phase, later in pairwise(phases):
        done += (later.position - phase.position) * _amount(config, phase)
    left = ((config.max_epochs or config.max_tokens or 0.0) - done) / (_amount(config, last) * last.global_packs)
    # A whole number of epochs has to give the same after float64's rounding.
    return last.step + max(math.ceil(round(left, 6)), 0 if last.step else 1)


def _amount(config: TrainConfig, phase: RunPhase) -> float:
    """Epochs or tokens of a pack, whichever the run is measured in."""
    return 1 / phase.pass_packs if config.max_epochs else phase.pack_tokens


def go_on(phases: Sequence[RunPhase], now: RunPhase, step: int, position: int) -> list[RunPhase]:
    """The phases of a run that goes on as `now` says after `step`: one more phase if `now` differs from the last.

    Each set goes on from where the set was in its last phase; another place of its files is no difference.
    """
    last = phases[-1]
    moved = [replace(share, shards="", cursor=0) for share in last.sets]
    same_sets = moved == [replace(share, shards="", cursor=0) for share in now.sets]
    if same_sets and (last.global_packs, last.group_packs) == (now.global_packs, now.group_packs):
        # As many packs in another amount of the same mixture: the length of the run may change, its order does not.
        return [*phases[:-1], replace(last, pass_packs=now.pass_packs, pack_tokens=now.pack_tokens)]
    reached: dict[str, int] = {}
    for phase, end in zip(phases, [*(later.position for later in phases[1:]), position], strict=True):
        cursors = cursors_at(phase.phase, end)
        reached |= {share.index: cursor for share, cursor in zip(phase.sets, cursors, strict=True)}
    sets = tuple(replace(share, cursor=reached.get(share.index, 0)) for share in now.sets)
    return [*phases, replace(now, step=step, position=position, sets=sets)]


def phase_of_step(phases: Sequence[RunPhase], step: int) -> tuple[RunPhase, int]:
    """The phase in which a step is taken, and the packs trained before that step. Steps count from 1."""
    phase = next(phase for phase in reversed(phases) if phase.step < step or phase is phases[0])
    return phase, phase.position + (step - 1 - phase.step) * phase.global_packs


def write_phases(folder: Path, phases: Sequence[RunPhase]) -> None:
    """Write phases.json, whole or not at all."""
    write_whole(folder / PHASES_NAME, json.dumps([asdict(phase) for phase in phases], indent=1))


def read_phases(folder: Path) -> list[RunPhase]:
    """The phases of the run in this folder. TrainError where the folder has no run."""
    path = folder / PHASES_NAME
    try:
        return [phase_from_json(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        raise TrainError(f"{path} is missing; expected the output folder of a run of `lmms train`") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TrainError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def phase_from_json(entry: Mapping[str, Any]) -> RunPhase:
    """Inverse of dataclasses.asdict."""
    sets = tuple(SetShare(**share) for share in entry["sets"])
    return RunPhase(**{**entry, "cost": ModelCost(**entry["cost"]), "sets": sets})
