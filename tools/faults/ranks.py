"""A run's ranks as forks of this process, which has imported everything that they need: a start takes a second."""

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from lmms.configs.errors import LmmsError
from lmms.configs.settings.train import TrainConfig
from lmms.train.run import train

FINISHED, STOPPED, FAILED = 0, 5, 6
"""Exit codes of a rank: the run is at its last step; SIGTERM stopped the run; an LmmsError ended the run."""


def start_ranks(config: TrainConfig, world: int, log: Path) -> list[int]:
    """Start so many ranks in a new process group, whose number is the pid of the first rank. Returns their pids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pids: list[int] = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            group = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            group |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            _be_rank(config, log, group if world > 1 else {}, pids[0] if pids else 0)
        pids.append(pid)
        os.setpgid(pid, pids[0])
    return pids


def wait_for(pids: Sequence[int], seconds: float, look: Callable[[], bool] = lambda: False) -> dict[int, int]:
    """pid -> exit code (-signal) of processes that end within so many seconds, or until `look` ends the wait."""
    ended: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < len(pids) and time.monotonic() < deadline and not look():
        for pid in set(pids) - ended.keys():
            ended_pid, status = os.waitpid(pid, os.WNOHANG)
            if ended_pid:
                ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return ended


def kill_group(pids: Sequence[int]) -> None:
    """Send SIGKILL to the ranks and to all processes that they started."""
    with suppress(ProcessLookupError):
        os.killpg(pids[0], signal.SIGKILL)


def _be_rank(config: TrainConfig, log: Path, environment: dict[str, str], group: int) -> None:
    """Train as one rank in this forked process, which ends here: the function never returns."""
    code = FAILED
    try:
        os.setpgid(0, group)
        os.environ |= environment
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        torch.set_num_threads(1)
        code = FINISHED if train(config, lambda event: print(event, flush=True)) else STOPPED
    except LmmsError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    except BaseException:  # noqa: BLE001  (the log has the error, and the campaign sees the code)
        traceback.print_exc()
    finally:
        os._exit(code)
