"""Processes forked from a process that has imported what they need: they start in milliseconds and share its memory.

Not with multiprocessing: its queues are named semaphores, its fork server and torch's tensors need a folder with
sockets, and a killed run leaves all of these. Here are pairs of sockets and pipes, which end with their processes.
Forked from the trainer itself, processes would inherit its threads' locks and its CUDA state.
"""

import atexit
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lmms.configs.errors import TrainError

_MAIN = f"import sys; import {__name__} as it, {__package__}.loader as loader; it.serve(int(sys.argv[1]), loader.serve)"

_ANSWER_S = 2.0
"""Seconds in which a process has to write its stacks; no answer is an answer too."""


@dataclass(frozen=True, slots=True)
class Fork:
    """A loader process, seen from the trainer."""

    pid: int
    line: socket.socket
    """The trainer's end of the socket between both."""
    stacks: int
    """The end of a pipe, to read: the process writes the stacks of its threads on SIGUSR2. Both end together."""

    def stack(self) -> str:
        """The stacks of the process, or why there is no answer."""
        self._signal(signal.SIGUSR2)
        parts = []
        while self._speaks(_ANSWER_S) and (part := os.read(self.stacks, 65536)):
            parts.append(part)
        if parts:
            return b"".join(parts).decode(errors="replace")
        status = Path(f"/proc/{self.pid}/status")
        states = [line for line in status.read_text().splitlines() if "State" in line] if status.exists() else []
        return f"it does not answer {''.join(states)}".strip()

    def hang_up(self) -> None:
        """Let the process end when it can."""
        with suppress(OSError):  # the process has ended
            self.line.shutdown(socket.SHUT_RDWR)

    def end(self, wait_s: float) -> None:
        """Hang up and wait until the process has ended; kill the process after these seconds."""
        self.hang_up()
        if not self._speaks(wait_s):
            self.kill()
        self.line.close()
        os.close(self.stacks)

    def kill(self) -> None:
        """End the process now, even if it was stopped."""
        self._signal(signal.SIGKILL)

    def _speaks(self, wait_s: float) -> bool:
        """Whether the pipe has something, or has ended, within these seconds."""
        poll = select.poll()
        poll.register(self.stacks, select.POLLIN)
        return bool(poll.poll(1000 * wait_s))

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # the process has ended
            os.kill(self.pid, number)


def fork(wait_s: float) -> Fork:
    """A new process that runs loader.serve. TrainError unless the process has started within these seconds."""
    line, far_line = socket.socketpair()
    stacks, far_stacks = os.pipe()
    control = _parent()
    control.settimeout(wait_s)
    try:
        socket.send_fds(control, [b"f"], [far_line.fileno(), far_stacks])
        answer = control.recv(8)
    except OSError:
        answer = b""
    far_line.close()
    os.close(far_stacks)
    if not answer:
        line.close()
        os.close(stacks)
        _parent.cache_clear()
        raise TrainError(f"no loader process started within {wait_s:.0f} s, or their parent died; its message is above")
    return Fork(int.from_bytes(answer, "little"), line, stacks)


def serve(control: int, run: Callable[[socket.socket, int], None]) -> None:
    """Fork a process for each pair of file descriptors that comes, until the trainer has ended."""
    # What a terminal or a scheduler sends to all processes is for the trainer, which may need another batch.
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
        signal.signal(name, signal.SIG_IGN)
    with socket.socket(fileno=control) as line:
        while True:
            message, descriptors, _, _ = socket.recv_fds(line, 1, 2)
            if not message:
                return
            pid = os.fork()
            if pid == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            line.sendall(pid.to_bytes(8, "little"))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    run(socket.socket(fileno=descriptors[0]), descriptors[1])
    os._exit(0)  # at once: Python would take apart all that was imported, page by page


@cache
def _parent() -> socket.socket:
    """The line to the process that forks: one process for all loaders, as importing what they need takes seconds."""
    line, far_line = socket.socketpair()
    with far_line:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _MAIN, str(far_line.fileno())],
            pass_fds=[far_line.fileno()],
            stdin=subprocess.DEVNULL,
            # One thread each: there are many processes, and a process with threads cannot be forked safely.
            env={
                **os.environ,
                **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
    atexit.register(_end, line, process)
    return line


def _end(line: socket.socket, process: subprocess.Popen[bytes]) -> None:
    line.close()
    process.kill()
    process.wait()
