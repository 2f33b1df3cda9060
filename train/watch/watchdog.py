"""A rank that makes no progress becomes an error that says where it stands.

Collectives wait for ranks that may never come, and file systems that do not answer cannot be told to: without this, a
run that hangs does so until somebody looks.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from lmms.configs.errors import TrainError

EXIT_CODE = 70
"""Exit code of a rank that was ended since it made no progress: EX_SOFTWARE of sysexits.h."""

_STDERR = 2


@contextmanager
def watchdog(stall_s: float, rank: int) -> Iterator[Callable[[str], None]]:
    """Call the yielded function with the work that comes next, at each progress. The process ends after stall_s seconds
    without a call.

    The process then says what it was doing, with the stacks of all threads: the sentence goes to the launcher, where
    the launcher has set TORCHELASTIC_ERROR_FILE, the rest to stderr.
    """
    latest = [(time.monotonic(), "the start")]
    done = threading.Event()

    def beat(doing: str) -> None:
        latest[0] = (time.monotonic(), doing)

    thread = threading.Thread(target=_watch, args=(latest, done, stall_s, rank), name="watchdog", daemon=True)
    thread.start()
    try:
        yield beat
    finally:
        done.set()
        thread.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(latest: list[tuple[float, str]], done: threading.Event, stall_s: float, rank: int) -> None:
    tick = min(1.0, stall_s / 10)
    while True:
        # For a thread that keeps all threads from running, this thread too: Python's watchdog runs without Python.
        faulthandler.dump_traceback_later(stall_s + tick, exit=True, file=_STDERR)
        if done.wait(tick):
            return
        since, doing = latest[0]
        idle = time.monotonic() - since
        if idle >= stall_s:
            _end_process(rank, f"no progress for {idle:.0f} s (stall_s is {stall_s:g}) at {doing}")


def _end_process(rank: int, what: str) -> None:
    sentence = f"{what}; the stacks above say where, and a rank that waits there for others is not the one to blame"
    text = f"rank {rank} makes no progress:\n{_stacks()}"
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        get_error_handler().record_exception(TrainError(sentence))
    else:
        text += f"error: rank {rank}: {sentence}\n"
    # Not through sys.stderr, whose lock the thread that hangs may hold.
    os.write(_STDERR, text.encode(errors="replace"))
    os._exit(EXIT_CODE)


def _stacks() -> str:
    """The stack of every thread except this thread."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    return "".join(
        f"{names.get(ident, 'a thread')}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in frames.items()
    )
