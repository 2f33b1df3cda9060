"""Signals of a scheduler: SIGTERM means save and stop, SIGUSR1 means save and go on.

The handlers only set flags, which the training looks at between steps. An end in time does not depend on the training:
Python runs handlers between two instructions of the main thread, which may be waiting for a dead peer, so a thread of
lmms reads the signals from the interpreter's wake-up pipe.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGKILL
"""137, as after the SIGKILL that would have come: unlike after SIGTERM, nothing was saved."""


@dataclass(slots=True)
class Asked:
    """What this process was asked for by signals, as numbers that can be summed over the ranks."""

    stop: int = 0
    """1 once SIGTERM came."""
    save: int = 0
    """1 once SIGUSR1 came. Set `save` to 0 before saving: the checkpoint has all that the signal can have meant."""


@contextmanager
def signals(grace_s: float) -> Iterator[Asked]:
    """Listen to SIGTERM and SIGUSR1 as long as the block runs; in any other thread than the main thread, to nothing.

    grace_s seconds after SIGTERM the process ends with a line on stderr and the exit code 137. A second SIGTERM changes
    nothing: under a scheduler that signals every process, a rank gets the launcher's too.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            asked.stop = 1
        else:
            asked.save = 1

    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    watcher = threading.Thread(target=_end_late, args=(receiver, grace_s), name="signals", daemon=True)
    watcher.start()
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGUSR1)}
    # The command line blocks the signal until here.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    try:
        yield asked
    finally:
        for number, handler in before.items():
            # None stands for a handler that is not Python's, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)
        sender.close()
        watcher.join()
        receiver.close()


def _end_late(receiver: socket.socket, grace_s: float) -> None:
    """Read signal numbers until the pipe is closed, and end the process when the time after SIGTERM is over."""
    deadline: float | None = None
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            _end(f"SIGTERM: no last checkpoint was complete within grace_s ({grace_s:g} s)")
        receiver.settimeout(left)
        try:
            numbers = receiver.recv(64)
        except TimeoutError:
            continue
        if not numbers:
            return
        if signal.SIGTERM in numbers and deadline is None:
            deadline = time.monotonic() + grace_s


def _end(reason: str) -> NoReturn:
    os.write(2, f"lmms train ends without saving: {reason}\n".encode())
    os._exit(EXIT_CODE)
