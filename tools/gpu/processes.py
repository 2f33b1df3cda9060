"""Pieces of a bench, each in its own process: a kernel that fails leaves CUDA unusable for the rest of the process.

The processes are forked from a process that has imported everything and has not started CUDA: importing takes longer
than most pieces. If CUDA does not start in a forked process, new processes are started ("spawn").
"""

import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from lmms.configs.errors import ConfigError

Method = Literal["fork", "spawn"]
_NOT_AVAILABLE, _NO_MEMORY = 3, 4
_EXITS = {_NOT_AVAILABLE: "not available", _NO_MEMORY: "no memory"}
_ERROR_TAIL = 1500
"""Characters of the end of a failed piece's output."""
_LOOK_S = 0.2
"""Seconds between two looks at whether the bench is to stop."""
_FULL = re.compile("out of memory|ALLOC_FAILED", re.IGNORECASE)
"""Full memory, in the errors of libraries that do not raise torch's error."""


class NotHereError(Exception):
    """This machine lacks something that a piece needs, which is no fault; the message names it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One thing to measure. The first word of its name is its kind."""

    name: str
    measure: Callable[..., Iterator[Any]]
    """Function that is called with the settings and yields whole results: the last result counts."""
    settings: dict[str, Any]
    seconds: float
    """Most seconds of the piece."""
    least: float = 10.0
    """Least seconds with which the piece is begun."""
    ours: bool = True
    """Whether the piece measures lmms or the machine: its failure fails the bench; other failures are only shown."""

    @property
    def kind(self) -> str:
        """Kind of the piece: packs, ceilings, training, ..."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a piece."""

    piece: Piece
    word: str
    """done, not available, no memory, failed, too slow, not run or stopped."""
    error: str = ""
    """Why the piece is not done: the end of its output."""
    seconds: float = 0.0
    result: Any = None
    """The last result, also if the piece failed later; None without a result."""

    def to_json(self) -> dict[str, Any]:
        """The piece as it stands in the report."""
        piece = self.piece
        return {
            "name": piece.name,
            "kind": piece.kind,
            "settings": piece.settings,
            "ours": piece.ours,
            "outcome": self.word,
            "error": self.error,
            "seconds": self.seconds,
            "result": self.result,
        }


@dataclass(frozen=True, slots=True)
class Running:
    """A piece that was begun."""

    piece: Piece
    result: Path
    """File of its last result, whole, as JSON; missing before the first result."""
    errors: Path
    """File of its output and errors."""
    began: float
    """Seconds since 1970."""
    process: BaseProcess


def begin(piece: Piece, scratch: Path, method: Method) -> Running:
    """Start a piece; its files are in `scratch`."""
    name = re.sub(r"[^\w.+-]+", "_", piece.name)
    result, errors = scratch / f"{name}.json", scratch / f"{name}.txt"
    context: Any = multiprocessing.get_context(method)
    process = context.Process(target=_work, args=(piece, result, errors))
    running = Running(piece, result, errors, time.time(), process)
    process.start()
    return running


def so_far(running: Running) -> Any:
    """The last result so far; None without a result."""
    return json.loads(running.result.read_text(encoding="utf-8")) if running.result.exists() else None


def end(running: Running, seconds: float, stop: Callable[[], str] = str) -> Outcome:
    """Wait for a piece, at most so many seconds, then kill it with all its processes. Returns the outcome.

    stop: called while waiting; a reason ends the piece at once.
    """
    process, until = running.process, time.monotonic() + seconds
    while process.is_alive() and not stop() and time.monotonic() < until:
        process.join(min(_LOOK_S, max(until - time.monotonic(), 0.0)))
    late = process.is_alive()
    assert process.pid is not None
    with suppress(ProcessLookupError):  # the group has already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    said = running.errors.read_text(encoding="utf-8", errors="replace").strip() if running.errors.exists() else ""
    word, ended = "done", time.time()
    if late and stop():
        word, said = "stopped", f"{said}\n{stop()}"
    elif late:
        word, said = "too slow", f"not done after {ended - running.began:.0f} s\n{said}"
    elif process.exitcode:
        word = _EXITS.get(process.exitcode, "failed")
        said += f"\nended by signal {-process.exitcode}" if process.exitcode < 0 else ""
    elif running.result.exists():  # the piece may have ended long ago
        ended = running.result.stat().st_mtime
    error = "" if word == "done" else said.strip()[-_ERROR_TAIL:]
    return Outcome(running.piece, word, error, ended - running.began, so_far(running))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all. Dataclasses become objects."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, default=asdict) + "\n", encoding="utf-8")
    part.rename(path)


def _work(piece: Piece, result: Path, errors: Path) -> None:
    # A process group, but no new session: the end of the bench's session ends this process too.
    os.setpgrp()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with errors.open("wb", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    # The parent may have replaced these streams.
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    try:
        for value in piece.measure(**piece.settings):
            write_json(result, value)
    except (NotHereError, ConfigError) as error:
        _leave(_NOT_AVAILABLE, error)
    except (RuntimeError, MemoryError) as error:
        if not _is_full(error):
            raise
        _leave(_NO_MEMORY, error)


def _is_full(error: BaseException | None) -> bool:
    """Whether memory of the GPU or of the machine ran out, also while compiling or recomputing."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and _FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _leave(code: int, error: Exception) -> NoReturn:
    print(str(error) or repr(error), file=sys.stderr)
    raise SystemExit(code)
