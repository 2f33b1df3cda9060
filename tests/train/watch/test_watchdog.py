"""A process without progress ends itself, in time, with one message that says where it stood."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmms.configs.errors import TrainError
from lmms.train.watch import watchdog as module
from lmms.train.watch.watchdog import EXIT_CODE, watchdog

SLEEPS = """
import sys, time
from lmms.train.watch.watchdog import watchdog
def take_a_step():
    {hang}
with watchdog(float(sys.argv[1]), 3) as beat:
    beat("step 1, packs [4]")
    print("beating", flush=True)
    beat("step 12, packs [7, 9]")
    take_a_step()
"""
HOLDS_THE_GIL = "import ctypes; ctypes.PyDLL(None).sleep(3000)"
GUARD_S = 600
"""Ends a test whose process hangs; under load an end may come late, and is none the worse."""


def ended(code: str, *arguments: object, **environment: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A Python process that ran to its end, and how long it took from its first line on."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        out, err = process.communicate(timeout=GUARD_S)
        seconds = time.monotonic() - began
    return subprocess.CompletedProcess(command, process.returncode, out, err), seconds


def test_a_step_that_sleeps_for_ever_ends_with_what_it_was_at_and_its_stack() -> None:
    process, seconds = ended(SLEEPS.format(hang="time.sleep(10**6)"), 2)
    assert process.returncode == EXIT_CODE
    assert seconds > 1.9
    *_, last = process.stderr.splitlines()
    assert re.match(r"error: rank 3: no progress for \d+ s \(stall_s is 2\) at step 12, packs \[7, 9\]; ", last)
    assert process.stderr.count("no progress for") == 1
    assert "MainThread:" in process.stderr
    assert "in take_a_step" in process.stderr


def test_under_a_launcher_the_sentence_goes_into_its_error_file_and_the_stacks_to_stderr(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    process, _ = ended(SLEEPS.format(hang="time.sleep(10**6)"), 1, TORCHELASTIC_ERROR_FILE=str(file))
    assert process.returncode == EXIT_CODE
    assert re.search(
        r'"TrainError: no progress for \d+ s \(stall_s is 1\) at step 12, packs \[7, 9\]; ', file.read_text()
    )
    assert "no progress for" not in process.stderr
    assert process.stderr.startswith("rank 3 makes no progress:\n")
    assert "in take_a_step" in process.stderr


def test_a_thread_that_lets_no_other_run_is_ended_all_the_same() -> None:
    process, _ = ended(SLEEPS.format(hang=HOLDS_THE_GIL), 2)
    assert process.returncode != 0
    assert "in take_a_step" in process.stderr


def test_progress_keeps_a_process_alive_and_its_end_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test: each beat comes 0.8 of a second after the last one, whatever the machine has to do."""
    now, looks, ends = [0.0], threading.Semaphore(0), []

    def clock() -> float:
        looks.release()
        return now[0]

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock))
    faults = SimpleNamespace(dump_traceback_later=nothing, cancel_dump_traceback_later=nothing)
    monkeypatch.setattr(module, "faulthandler", faults)
    monkeypatch.setattr(module, "_end_process", lambda rank, what: ends.append(what))
    with watchdog(1, 0) as beat:
        for step in range(4):
            now[0] += 0.8
            beat(f"step {step}")
            # The look of the beat itself, one that may have begun before it, and one after.
            assert all(looks.acquire(timeout=GUARD_S) for _ in range(3))
        assert ends == []
        now[0] += 1
        assert all(looks.acquire(timeout=GUARD_S) for _ in range(2))
    assert ends[0] == "no progress for 1 s (stall_s is 1) at step 3"
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}


def nothing(*arguments: object, **named: object) -> None:
    """Does nothing."""


def test_an_error_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_end_process", pytest.fail)
    with pytest.raises(TrainError, match="of a step"), watchdog(60, 0):
        raise TrainError("of a step")


RANK = """
import os, signal, sys
import torch
import torch.distributed as dist
from lmms.train.watch.watchdog import watchdog
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
dist.all_reduce(torch.ones(3))
with watchdog(2, rank) as beat:
    beat("step 5")
    if rank == 1:
        print("stopping", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(3))
"""


def test_a_rank_that_waits_for_a_stopped_one_ends_in_time(tmp_path: Path) -> None:
    command, pipe = [sys.executable, "-c", RANK], subprocess.PIPE
    with (
        subprocess.Popen([*command, "1", tmp_path / "store"], stdout=pipe) as stopped,
        subprocess.Popen([*command, "0", tmp_path / "store"], stderr=pipe, text=True) as waiting,
    ):
        assert stopped.stdout is not None
        assert stopped.stdout.readline() == b"stopping\n"
        _, errors = waiting.communicate(timeout=GUARD_S)
        stopped.kill()
    assert waiting.returncode == EXIT_CODE
    assert re.search(r"error: rank 0: no progress for \d+ s \(stall_s is 2\) at step 5; ", errors)
    assert "in all_reduce" in errors


LAUNCHER = """
import logging, sys, time
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from lmms.train.watch.watchdog import watchdog

def rank():
    import os
    number = int(os.environ["RANK"])
    with watchdog(2 if number == 1 else 3000, number) as beat:
        beat(f"step {number}")
        time.sleep(3000)

if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    launch = LaunchConfig(1, 1, 2, run_id="x", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    try:
        elastic_launch(launch, rank)()
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        print("the launcher says:", number, failure.exitcode, failure.message["message"], file=sys.stderr)
"""


def test_a_launcher_hears_the_sentence_once_and_ends_the_other_ranks(tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(LAUNCHER)
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=GUARD_S)
    *_, last = process.stderr.splitlines()
    expected = r"the launcher says: 1 70 TrainError: no progress for \d+ s \(stall_s is 2\) at step 1; "
    assert re.match(expected, last)
    assert process.stderr.count("no progress for") == 1
    assert "in rank" in process.stderr
