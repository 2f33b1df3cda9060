"""Who may go on with an output folder, from which checkpoint, and what a person should know of it."""

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from lmms.configs.errors import LmmsError, TrainError
from lmms.train.checkpoint import TrainerState
from lmms.train.parallel import World

T = TypeVar("T")


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """The output folder, made if it is not there, for this process alone. TrainError while another run has it.

    The lock goes with the process: a kill leaves none behind.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(output, os.O_RDONLY)
    except OSError as error:
        raise TrainError(f"output {output} cannot be opened as a folder: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainError(f"another run is writing {output}; wait for it or choose another output") from None
        yield
    finally:
        os.close(descriptor)


def on_main(world: World, act: Callable[[], T]) -> T:
    """What rank 0 gets of this, on every rank; so too the LmmsError that it raises."""
    outcome: list[T] | LmmsError = []
    if world.is_main:
        try:
            outcome = [act()]
        except LmmsError as error:
            outcome = error
    outcome = world.from_main(outcome)
    if isinstance(outcome, LmmsError):
        raise outcome
    return outcome[0]


def resumed_state(fresh: TrainerState, stored: TrainerState, checkpoint: Path) -> TrainerState:
    """This run's state at a checkpoint. TrainError unless seed, order and shards give the same packs."""
    for name in ("shards", "seed", "order"):
        found, expected = getattr(stored, name), getattr(fresh, name)
        if found != expected:
            raise TrainError(
                f"{checkpoint} was trained with {name} {found}, this run has {expected}: other packs would come next;"
                " go on with the same shards and seed, or start in another output folder"
            )
    before, now = (set(_settings(state.config).get("model.freeze", ())) for state in (stored, fresh))
    if before != now:
        raise TrainError(
            f"{checkpoint} was trained with model.freeze {sorted(before)}, this run has {sorted(now)}: AdamW's averages"
            " are those of other parameters; go on with the same freeze, or start in another output folder"
        )
    return replace(fresh, step=stored.step, position=stored.position, zero_steps=stored.zero_steps)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """A line for each setting of a checkpoint's run that is another in this run."""
    old, new = _settings(before), _settings(now)
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"changed since the checkpoint: {key} was {old.get(key)}, is {new.get(key)}"


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value, with tuples as the lists that JSON makes of them."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= _settings(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found
