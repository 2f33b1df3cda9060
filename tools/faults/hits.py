"""The faults: each waits for its moment in a run, strikes, and returns whether it could strike."""

import os
import random
import signal
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lmms.train.checkpoint.read import step_folders
from lmms.train.watch.metrics import METRICS_NAME
from tools.faults.pids import children
from tools.faults.ranks import kill_group, wait_for

Codes = dict[int, int]
"""pid -> exit code of ranks that have ended."""

_MOMENT_S = 60.0
"""The most seconds that a fault waits for its moment."""


@dataclass(frozen=True, slots=True)
class Running:
    """A run that is under way."""

    output: Path
    pids: tuple[int, ...]
    rng: random.Random

    def logged(self) -> int:
        """The number of lines in the run's metrics."""
        path = self.output / METRICS_NAME
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def until(self, moment: Callable[[], bool], ended: Collection[int] = ()) -> Codes:
        """Wait for a moment, or until every rank has ended; returns the codes of ranks that are not in `ended`."""
        return wait_for([pid for pid in self.pids if pid not in ended], _MOMENT_S, moment)

    def until_some_step(self, ended: Collection[int] = ()) -> Codes:
        """Wait for a random step among the next, and for a random part of the step after that."""
        goal = self.logged() + self.rng.randint(0, 6)
        codes = self.until(lambda: self.logged() > goal, ended)
        time.sleep(self.rng.random() * 0.2)
        return codes


def one_rank(run: Running) -> tuple[Codes, int]:
    """SIGKILL to one rank: the others have to notice."""
    codes = run.until_some_step()
    return codes, _kill(run.rng.choice(run.pids), codes)


def whole_group(run: Running) -> tuple[Codes, int]:
    """SIGKILL to the ranks and all their processes at once, as a node that loses power."""
    codes = run.until_some_step()
    return codes, _kill_all(run, codes)


def early(run: Running) -> tuple[Codes, int]:
    """The whole group, before or around its first step."""
    codes = wait_for(run.pids, run.rng.random() * 2)
    return codes, _kill_all(run, codes)


def during_save(run: Running) -> tuple[Codes, int]:
    """The whole group while a checkpoint is being written."""
    codes = run.until(lambda: any(run.output.glob("step-*.part")))
    time.sleep(run.rng.random() * 0.05)
    return codes, _kill_all(run, codes)


def after_save(run: Running) -> tuple[Codes, int]:
    """The whole group as soon as a checkpoint has got its name."""
    before = max(step_folders(run.output), default=0)
    codes = run.until(lambda: max(step_folders(run.output), default=0) > before)
    return codes, _kill_all(run, codes)


def sigterm(run: Running) -> tuple[Codes, int]:
    """SIGTERM to all ranks: they save and stop."""
    codes = run.until_some_step()
    return codes, _signal_all(run, codes, signal.SIGTERM)


def sigusr1(run: Running) -> tuple[Codes, int]:
    """SIGUSR1 to all ranks, which save and go on; then the whole group is killed."""
    codes = run.until_some_step()
    _signal_all(run, codes, signal.SIGUSR1)
    codes |= run.until_some_step(codes)
    return codes, _kill_all(run, codes)


def stopped_rank(run: Running) -> tuple[Codes, int]:
    """A rank that hangs: the watchdogs of the others end the run. Then it is killed."""
    codes = run.until_some_step()
    hung = run.rng.choice(run.pids)
    hit = 0 if hung in codes else _signal(hung, signal.SIGSTOP)
    codes |= wait_for([pid for pid in run.pids if pid not in codes and pid != hung], _MOMENT_S)
    _signal(hung, signal.SIGKILL)
    return codes, hit


def loader_process(run: Running) -> tuple[Codes, int]:
    """SIGKILL to a loader process."""
    codes = run.until_some_step()
    made = [child for pid in run.pids if pid not in codes for child in children(pid)]
    return codes, _signal(run.rng.choice(made), signal.SIGKILL) if made else 0


def damaged_checkpoint(run: Running) -> tuple[Codes, int]:
    """The whole group, and then damage to the newest checkpoint: the one before it has to be used."""
    codes = run.until_some_step()
    hit = _kill_all(run, codes)
    time.sleep(0.05)
    folders = step_folders(run.output)
    files = sorted(path for path in folders[max(folders)].iterdir()) if len(folders) > 1 else []
    if hit and files:
        file = run.rng.choice(files)
        data = bytearray(file.read_bytes())
        data[run.rng.randrange(len(data))] ^= 0xFF
        file.write_bytes(data[: len(data) // 2] if run.rng.random() < 0.5 else data)
    return codes, hit


def cut_log(run: Running) -> tuple[Codes, int]:
    """The whole group, in the middle of a line of the log."""
    codes = run.until_some_step()
    hit = _kill_all(run, codes)
    path = run.output / METRICS_NAME
    if hit and path.exists():
        with path.open("ab") as file:
            file.write(b'{"step": 9, "loss"')
    return codes, hit


HITS: Mapping[str, Callable[[Running], tuple[Codes, int]]] = {
    "one rank killed": one_rank,
    "group killed in a step": whole_group,
    "group killed at the start": early,
    "group killed in a save": during_save,
    "group killed after a save": after_save,
    "SIGTERM": sigterm,
    "SIGUSR1, then killed": sigusr1,
    "rank hangs": stopped_rank,
    "loader process": loader_process,
    "killed, checkpoint damaged": damaged_checkpoint,
    "killed, log cut": cut_log,
}


def _kill(pid: int, codes: Codes) -> int:
    return 0 if pid in codes else _signal(pid, signal.SIGKILL)


def _kill_all(run: Running, codes: Codes) -> int:
    alive = len(codes) < len(run.pids)
    kill_group(run.pids)
    return int(alive)


def _signal_all(run: Running, codes: Codes, number: signal.Signals) -> int:
    return min(sum(_signal(pid, number) for pid in run.pids if pid not in codes), 1)


def _signal(pid: int, number: signal.Signals) -> int:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return 1
    return 0
