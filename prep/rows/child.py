"""Tables read in a process of their own: a damaged file can end the library that reads it, and must not end a build.

One child serves all files of a build. The request is a line of JSON on its standard input; the answer is a frame for
each chunk (pickled rows with their number and the position in the file), and a last frame with the error, if any.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from struct import Struct
from typing import IO, TypeAlias

from lmms.prep.rows.chunk import Packed
from lmms.prep.rows.kinds import Kind

_FRAME = Struct("<qqq")
"""Rows of the chunk, position in the file, bytes of what follows. _LAST rows: the file's end, or an error's text."""
_LAST = -1

_MOST_KILLS = 2
"""SIGKILLs after which a file is read once more; damage ends a child otherwise."""

_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


class _Killed(OSError):
    """The child was ended from outside, as by a system without memory: the file may be sound."""


ReadTable: TypeAlias = "Callable[[Kind, Path, Sequence[str], int | None], Iterator[tuple[Packed, int]]]"
"""(kind, file, columns to convert, most rows) -> the rows of each chunk, and the position in the file after them.

OSError if a file is damaged. Most rows: for a look at the start of a file; None for all.
"""


@contextmanager
def table_reader() -> Iterator[ReadTable]:
    """Yields a function that reads tables in a child, which starts with the first file and ends with this block.

    Each file is read to its end, or to an error, before the next; or the answer is closed, which ends the child.
    """
    children: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryFile() as said:

        def read(kind: Kind, file: Path, columns: Sequence[str], most: int | None) -> Iterator[tuple[Packed, int]]:
            done = 0
            for killed in range(_MOST_KILLS + 1):
                if not children or children[-1].poll() is not None:
                    children.append(_start(said))
                request = [kind, os.fsdecode(file), columns, most]
                try:
                    with closing(_answers(children[-1], request)) as answers:
                        for answer in islice(answers, done, None):
                            yield answer
                            done += 1
                    return
                except _Killed:
                    if killed == _MOST_KILLS:
                        raise

        try:
            yield read
        finally:
            for child in children:
                child.kill()
                child.communicate()


def how_ended(code: int) -> str:
    """The end of a process, from its exit status, for a sentence that begins with the process; and what that means."""
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return f"was ended by {name}, as the system does when memory runs out (fewer workers need less)"
    return f"was ended by {name}" + (", a crash in a library" if -code in _CRASHES else "")


def _start(said: IO[bytes]) -> "subprocess.Popen[bytes]":
    """The child, in a process group of its own: Ctrl-C ends it by way of its parent only."""
    # -P: no module of the working folder may stand in for another.
    command = [sys.executable, "-P", "-m", "lmms.prep.rows.child"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, process_group=0)


def _answers(child: "subprocess.Popen[bytes]", request: Sequence[object]) -> Generator[tuple[Packed, int], None, None]:
    is_whole = False
    try:
        yield from _frames(child, request)
        is_whole = True
    finally:
        if not is_whole:  # what the child goes on to say is no answer to the next request
            child.kill()
            child.wait()


def _frames(child: "subprocess.Popen[bytes]", request: Sequence[object]) -> Iterator[tuple[Packed, int]]:
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(json.dumps(request).encode() + b"\n")
        child.stdin.flush()
    except OSError:
        raise _death(child) from None
    while True:
        head = child.stdout.read(_FRAME.size)
        if len(head) < _FRAME.size:
            raise _death(child)
        rows, position, size = _FRAME.unpack(head)
        data = child.stdout.read(size)
        if len(data) < size:
            raise _death(child)
        if rows == _LAST:
            if data:
                raise OSError(data.decode())
            return
        yield Packed(data, rows), position


def _death(child: "subprocess.Popen[bytes]") -> OSError:
    code = child.wait(10)
    return (_Killed if code == -signal.SIGKILL else OSError)(f"the process that read the file {how_ended(code)}")


def serve() -> None:
    """The life of the child: a file for each line of standard input, until there is none."""
    from lmms.prep.rows.tables import read_table

    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin.buffer:
        kind, file, columns, most = json.loads(line)
        error = b""
        try:
            for rows, position in read_table(kind, Path(file), columns, most):
                data = pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)
                answer.write(_FRAME.pack(len(rows), position, len(data)) + data)
        except BrokenPipeError:
            return
        except BaseException as failure:  # noqa: BLE001  (a library's panic too is the fault of the file)
            text = str(failure).strip().splitlines() or [type(failure).__name__]
            error = (text[0] if isinstance(failure, OSError) else f"{type(failure).__name__}: {text[0]}").encode()
        answer.write(_FRAME.pack(_LAST, 0, len(error)) + error)
        answer.flush()


if __name__ == "__main__":
    serve()
