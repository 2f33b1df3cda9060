"""SIGTERM asks for an end and makes sure of it; SIGUSR1 asks for a checkpoint."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lmms.train.watch.signals import EXIT_CODE, Asked, signals

WAITS = """
import ctypes, sys, time
from lmms.train.watch.signals import signals
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with signals(float(sys.argv[1])) as asked:
    print("listening", flush=True)
    {body}
print("left", flush=True)
{after}
"""
UNTIL_STOPPED = "while not asked.stop: time.sleep(0.01)"
SLOW_TO_STOP = (
    "[time.sleep(0.01) for _ in iter(lambda: asked.stop, 1)]; print('stopping', flush=True); sys.stdin.readline()"
)
GUARD_S = 600
"""Ends a test whose process hangs."""
GOES_ON = "while True: time.sleep(0.01)"
STUCK = "lock(mutex); lock(mutex)"
"""In a C function that signals do not interrupt, so that Python's handlers do not run."""


def listener(grace_s: float, body: str, after: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITS.format(body=body, after=after), str(grace_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


def test_the_flags_say_what_came() -> None:
    with signals(60) as asked:
        assert asked == Asked(stop=0, save=0)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked == Asked(stop=0, save=1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked == Asked(stop=0, save=1)
        asked.save = 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked == Asked(stop=1, save=0)


def test_the_handlers_of_before_come_back() -> None:
    seen: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    own = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    threads = threading.active_count()
    try:
        with signals(60) as asked:
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert (asked.save, seen) == (1, [signal.SIGUSR1])
        assert signal.set_wakeup_fd(-1) == -1
        assert threading.active_count() == threads
    finally:
        signal.signal(signal.SIGUSR1, own)
    assert {number: signal.getsignal(number) for number in before} == before


def test_another_thread_listens_to_nothing() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[object] = []

    def listen() -> None:
        with signals(60) as asked:
            found.extend([asked, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [Asked(), before]


def test_a_run_that_stops_in_time_ends_as_it_wants_to() -> None:
    process = listener(60, UNTIL_STOPPED)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=GUARD_S) == ("left\n", "")
    assert process.returncode == 0


def test_the_grace_time_ends_with_the_block() -> None:
    process = listener(2, UNTIL_STOPPED, "time.sleep(2.5)")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=GUARD_S) == ("left\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("body", [GOES_ON, STUCK])
def test_a_run_that_does_not_stop_ends_after_the_grace_time(body: str) -> None:
    process = listener(0.5, body)
    began = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=GUARD_S)
    assert time.monotonic() - began >= 0.5
    assert (process.returncode, out) == (EXIT_CODE, "")
    assert errors == (
        "lmms train ends without saving: SIGTERM: no last checkpoint was complete within grace_s (0.5 s)\n"
    )


def test_a_second_sigterm_changes_nothing() -> None:
    process = listener(60, SLOW_TO_STOP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate("\n", timeout=GUARD_S) == ("left\n", "")
    assert process.returncode == 0


def test_an_import_of_the_command_line_blocks_no_signal_and_its_process_does() -> None:
    """SIGUSR1 is to come to `lmms train` alone, and not to the threads of numpy."""
    blocked = "import signal, sys; {}; print(signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, ()))"
    start = "import lmms.cli.main as m; m.main = lambda: None; import lmms.cli.__main__ as p; p.main()"
    for code, expected in (("import lmms.cli.main, lmms.cli.__main__", "False"), (start, "True")):
        run = subprocess.run([sys.executable, "-c", blocked.format(code)], capture_output=True, text=True)
        assert run.stdout.strip() == expected, run.stderr
