"""The place of a run before its next step: its start, or the checkpoint that it goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import read_state
from lmms.train.checkpoint.resume import resumed_state
from lmms.train.checkpoint.state import TrainerState
from lmms.train.data.phases import RunPhase, go_on, run_steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Stand:
    """The place of a run before its next step."""

    checkpoint: Path | None
    stored: TrainerState | None
    """The state in the checkpoint."""
    state: TrainerState
    """The state that the run goes on from, with the current settings."""
    phases: Sequence[RunPhase]
    """The phases of the run's order, the oldest first."""
    steps: int
    """Steps of the whole run."""

    @property
    def phase(self) -> RunPhase:
        """The phase of the next step."""
        return self.phases[-1]


def stand_of(config: TrainConfig, fresh: TrainerState, now: RunPhase, checkpoint: Path | None) -> Stand:
    """The place of a run with these settings that goes on from a checkpoint, or starts.

    fresh, now: state and phase of the run before its first step. TrainError for a checkpoint that the run cannot use.
    """
    stored = read_state(checkpoint) if checkpoint else None
    state = fresh
    if checkpoint and stored:
        state = resumed_state(fresh, stored, checkpoint, config.resume_changes)
    phases = go_on(state.phases, now, state.step, state.position)
    return Stand(
        checkpoint=checkpoint,
        stored=stored,
        state=replace(state, phases=tuple(phases)),
        phases=phases,
        steps=run_steps(config, phases),
    )
