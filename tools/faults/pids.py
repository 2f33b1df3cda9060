"""Processes and their children, by /proc."""

from contextlib import suppress
from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process has started, and the processes that those started."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            number, rest = path.read_text().split(" ", 1)
            if int(rest.rpartition(")")[2].split()[1]) == pid:
                pids += [int(number), *children(int(number))]
    return pids
