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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch

from lmms.configs.errors import ConfigError
from tools.gpu.errors import NotHereError
from tools.gpu.piece import results_of, write_json

Outcome = Literal["done", "not available", "no memory", "failed", "too slow", "not run", "stopped"]
_NOT_AVAILABLE, _NO_MEMORY = 3, 4
_ERROR_TAIL = 1500
"""Characters of what a failed piece wrote last."""
_LOOK_S = 0.2
"""Seconds between two looks at whether the bench is to stop."""
_FULL = re.compile("out of memory|ALLOC_FAILED", re.IGNORECASE)
"""What libraries call it that do not raise torch's own error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One thing to measure."""

    name: str
    kind: str
    """See piece.results_of."""
    settings: dict[str, Any]
    seconds: float
    """At most."""
    least: float = 10.0
    """It is not begun with less time left."""
    ours: bool = True
    """Whether it measures lmms or the machine, so that its failure is the bench's: other libraries' are only told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What came of a piece."""

    name: str
    kind: str
    settings: dict[str, Any]
    ours: bool
    outcome: Outcome
    error: str
    """Why it is not done, in the error's own last words."""
    seconds: float
    result: Any
    """The last that it gave, also where it failed later; None where it gave nothing."""


@dataclass(slots=True)
class Running:
    """A piece that was begun."""

    piece: Piece
    result: Path
    """Its last result, whole, as JSON; not there before the first."""
    errors: Path
    """What it wrote on its streams."""
    began: float
    """Seconds since 1970."""
    process: BaseProcess | None = None


def begin(piece: Piece, scratch: Path, method: Literal["fork", "spawn"]) -> Running:
    """Start a piece; its files are in `scratch`."""
    name = re.sub(r"[^\w.+-]+", "_", piece.name)
    running = Running(piece, scratch / f"{name}.json", scratch / f"{name}.txt", time.time())
    running.result.unlink(missing_ok=True)
    context: Any = multiprocessing.get_context(method)
    running.process = context.Process(
        target=_work, args=(piece.kind, piece.settings, str(running.result), str(running.errors))
    )
    running.process.start()
    return running


def so_far(running: Running) -> Any:
    """What it has given; None for nothing."""
    return json.loads(running.result.read_text(encoding="utf-8")) if running.result.exists() else None


def end(running: Running, seconds: float, stop: Callable[[], str] = str) -> Found:
    """What came of it, waiting for at most so long. Then it is killed with all that it started.

    stop: asked while waiting; a reason ends it at once.
    """
    piece, process = running.piece, running.process
    assert process is not None
    until = time.monotonic() + seconds
    while process.is_alive() and not stop() and time.monotonic() < until:
        process.join(min(_LOOK_S, max(until - time.monotonic(), 0.0)))
    late = process.is_alive()
    assert process.pid is not None
    with suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    said = running.errors.read_text(encoding="utf-8", errors="replace").strip() if running.errors.exists() else ""
    outcome: Outcome = "done"
    ended = time.time()
    if late and stop():
        outcome, said = "stopped", f"{said}\n{stop()}"
    elif late:
        outcome, said = "too slow", f"not done after {ended - running.began:.0f} s\n{said}"
    elif process.exitcode:
        outcome = _OUTCOMES.get(process.exitcode, "failed")
        if process.exitcode < 0:
            said = f"{said}\nended by signal {-process.exitcode}".strip()
    elif running.result.exists():  # it may have ended long ago
        ended = running.result.stat().st_mtime
    error = "" if outcome == "done" else said.strip()[-_ERROR_TAIL:]
    return _found(piece, outcome, error, ended - running.began, so_far(running))


def not_begun(piece: Piece, outcome: Outcome, why: str) -> Found:
    """Of a piece that is left out."""
    return _found(piece, outcome, why, 0.0, None)


def _found(piece: Piece, outcome: Outcome, error: str, seconds: float, result: Any) -> Found:
    return Found(
        name=piece.name,
        kind=piece.kind,
        settings=piece.settings,
        ours=piece.ours,
        outcome=outcome,
        error=error,
        seconds=seconds,
        result=result,
    )


_OUTCOMES: dict[int, Outcome] = {_NOT_AVAILABLE: "not available", _NO_MEMORY: "no memory"}


def _work(kind: str, settings: dict[str, Any], result: str, errors: str) -> None:
    # A group and not a session of its own: whoever ends the bench's session ends this too.
    os.setpgrp()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    with Path(errors).open("wb", buffering=0) as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    # Whoever forked may have put others in their places.
    sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    try:
        for value in results_of(kind, settings):
            write_json(Path(result), value)
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
