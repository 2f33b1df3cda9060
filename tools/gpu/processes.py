"""Pieces of a bench in processes of their own: a kernel that fails leaves CUDA unusable for the rest of its process.

They are forked from one that has imported everything and has no CUDA: importing takes longer than most pieces. Where
CUDA does not start in a forked process, they are started anew ("spawn").
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
"""Characters of what a failed piece wrote last."""
_LOOK_S = 0.2
"""Seconds between two looks at whether the bench is to stop."""
_FULL = re.compile("out of memory|ALLOC_FAILED", re.IGNORECASE)
"""What libraries call it that do not raise torch's own error."""


class NotHereError(Exception):
    """This machine lacks what would be measured, which is no fault; the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One thing to measure. The first word of its name is its kind."""

    name: str
    measure: Callable[..., Iterator[Any]]
    """Called with the settings; gives results, each whole: the last one counts."""
    settings: dict[str, Any]
    seconds: float
    """At most."""
    least: float = 10.0
    """It is not begun with fewer seconds left."""
    ours: bool = True
    """Whether it measures lmms or the machine, so that its failure is the bench's: other libraries' are only told."""

    @property
    def kind(self) -> str:
        """packs, ceilings, training, ..."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a piece."""

    piece: Piece
    word: str
    """done, not available, no memory, failed, too slow, not run or stopped."""
    error: str = ""
    """Why it is not done, in the error's own last words."""
    seconds: float = 0.0
    result: Any = None
    """The last that it gave, also where it failed later; None where it gave nothing."""

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
    """Its last result, whole, as JSON; not there before the first."""
    errors: Path
    """What it wrote on its streams."""
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
    """What it has given; None for nothing."""
    return json.loads(running.result.read_text(encoding="utf-8")) if running.result.exists() else None


def end(running: Running, seconds: float, stop: Callable[[], str] = str) -> Outcome:
    """What came of it, waiting for at most so long. Then it is killed with all that it started.

    stop: asked while waiting; a reason ends it at once.
    """
    process, until = running.process, time.monotonic() + seconds
    while process.is_alive() and not stop() and time.monotonic() < until:
        process.join(min(_LOOK_S, max(until - time.monotonic(), 0.0)))
    late = process.is_alive()
    assert process.pid is not None
    with suppress(ProcessLookupError):  # nothing is left of it
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
    elif running.result.exists():  # it may have ended long ago
        ended = running.result.stat().st_mtime
    error = "" if word == "done" else said.strip()[-_ERROR_TAIL:]
    return Outcome(running.piece, word, error, ended - running.began, so_far(running))


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all. Dataclasses become objects."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, default=asdict) + "\n", encoding="utf-8")
    part.rename(path)


def _work(piece: Piece, result: Path, errors: Path) -> None:
    # A group and not a session of its own: whoever ends the bench's session ends this too.
    os.setpgrp()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with errors.open("wb", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    # Whoever forked may have put others in their places.
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
    """Whether memory ran out, of the GPU or of the machine, be it while something was compiled or computed again."""
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
