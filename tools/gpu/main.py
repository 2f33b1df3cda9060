"""tools/gpu/run: the pieces in order of their value, with the results as JSON and as tables."""

import argparse
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.gpu.pieces.ceilings import read_facts
from tools.gpu.pieces.models import FULL, MINI, MINI_ON_GPU, Sizes
from tools.gpu.processes import Method, Outcome, Piece, Running, begin, end, so_far, write_json
from tools.gpu.report.show import show
from tools.gpu.report.summary import last_line, report_of
from tools.gpu.schedule import BUDGET, FACTS_SECONDS, Schedule, allowed, place

ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 200
"""Columns of the tables in a log."""


def main(began: float) -> int:
    """The command. began: its time of time.monotonic. Returns 0 if all pieces of lmms ended without a fault."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu/run", description="What this GPU can do, and what lmms makes of it."
    )
    parser.add_argument("--out", type=Path, help="JSON file to write (docs/gpu/DEVICE-DATE.json)")
    parser.add_argument("--only", default="", metavar="REGEX", help="pieces whose name matches; see --list")
    parser.add_argument("--list", action="store_true", help="name the pieces and end")
    parser.add_argument("--seconds", type=float, default=BUDGET, help=f"time for all pieces ({BUDGET:.0f})")
    parser.add_argument("--mini", action="store_true", help="thin models and short packs, on a GPU too: does all run?")
    arguments = parser.parse_args()
    screen = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
    if arguments.list:
        for piece in Schedule(Path(), FULL).pieces():
            screen.print(
                f"{piece.name}  ({piece.seconds:.0f} s at most)", markup=False, highlight=False, soft_wrap=True
            )
        return 0
    with tempfile.TemporaryDirectory(prefix="lmms-gpu-", ignore_cleanup_errors=True) as scratch:
        bench = Bench(Path(scratch), arguments.out, began, began + arguments.seconds, screen)
        with stopping(bench):
            report = measure(bench, arguments.only, mini=arguments.mini)
    show(report, screen)
    screen.print(f"wrote {bench.out}", markup=False, soft_wrap=True)
    return 0 if report["passed"] else 1


@dataclass(slots=True)
class Bench:
    """A run of the command, with the results so far; after each piece they are on disk, whole."""

    scratch: Path
    out: Path | None
    began: float
    """Time of time.monotonic; so is `deadline`."""
    deadline: float
    """End of the time for all pieces together."""
    screen: Console
    sizes: Sizes | None = None
    method: Method = "fork"
    outcomes: list[Outcome] = field(default_factory=list)
    waiting: list[Piece] = field(default_factory=list)
    """Pieces that run or have not begun."""
    facts: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    """Why the bench has to end early; "" while it runs."""

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(self.deadline - time.monotonic(), 0.0)

    def begin(self, pieces: Sequence[Piece]) -> list[Running]:
        """Begin these pieces, unless the bench has to end."""
        return [begin(piece, self.scratch, self.method) for piece in pieces if not self.stopped]

    def end(self, running: Running) -> Outcome:
        """The outcome of a piece that was begun. If the time of the bench was over, the piece is not at fault."""
        limit, left = running.began + running.piece.seconds - time.time(), self.left
        outcome = end(running, min(limit, left), lambda: self.stopped)
        if outcome.word == "too slow" and left < limit:
            return replace(outcome, word="not run", error=f"the bench's time was over; {outcome.error}")
        return outcome

    def run(self, piece: Piece) -> Outcome:
        """Begin a piece, if there is time, and wait for its end."""
        if self.stopped or not allowed(piece, self.left):
            return Outcome(piece, "not run", self.stopped or f"{self.left:.0f} s were left")
        return self.end(begin(piece, self.scratch, self.method))

    def keep(self, outcome: Outcome) -> None:
        """Print the outcome of a piece, and write all results so far."""
        name = outcome.piece.name
        self.outcomes.append(outcome)
        self.waiting = [piece for piece in self.waiting if piece.name != name]
        said = "" if outcome.word == "done" else f": {outcome.word}: {last_line(outcome.error)}"
        self.screen.print(f"{name}, {outcome.seconds:.0f} s{said}", markup=False, highlight=False, style="dim")
        self.write()

    def write(self) -> dict[str, Any]:
        """The report of now, also written to disk: every piece with its result, or with the reason for none."""
        ahead = [Outcome(piece, "not run", self.stopped or "the bench has not come to it") for piece in self.waiting]
        head = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - self.began,
            "complete": not (self.waiting or self.stopped),
            "stopped": self.stopped,
            "processes": self.method,
            "facts": self.facts,
        }
        report = report_of(head, [*self.outcomes, *ahead], self.sizes)
        if self.out:
            write_json(self.out, report)
        return report


@contextmanager
def stopping(bench: Bench) -> Iterator[None]:
    """A block in which a signal to end kills the running piece; the report is still written and shown."""

    def stop(number: int, _: object) -> None:
        bench.stopped = f"stopped by {signal.Signals(number).name}"

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def measure(bench: Bench, only: str, *, mini: bool) -> dict[str, Any]:
    """Measure every piece for which there is time. Without a GPU all pieces are miniatures."""
    _read_facts(bench)
    cuda = bench.facts.get("cuda") is not None
    sizes = bench.sizes = MINI if not cuda else MINI_ON_GPU if mini else FULL
    device = "-".join(str(bench.facts.get("device", "unknown")).lower().split())
    name = f"{device}-{datetime.now(UTC).date()}{'' if sizes is FULL else '-mini'}.json"
    bench.out = (bench.out or ROOT / "docs" / "gpu" / name).resolve()
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(bench.scratch / "packs", sizes)
    chosen = [piece for piece in schedule.pieces() if re.search(only, piece.name)]
    packs, memory = list(schedule.packs(chosen)), list(schedule.memory(chosen))
    bench.waiting = [*packs, *memory, *chosen]
    bench.write()
    for running in bench.begin(packs):
        bench.keep(bench.end(running))
    predictions = bench.begin(memory)
    for piece in chosen:
        if bench.stopped:
            break
        too_large = _too_large(piece, predictions, bench.facts.get("memory"))
        bench.keep(Outcome(piece, "no memory", too_large) if too_large else bench.run(_shortened(piece, bench.left)))
    for running in predictions:
        bench.keep(bench.end(running))
    return bench.write()


def _read_facts(bench: Bench) -> None:
    """Read the facts of this machine, and find out whether forked processes can use its GPU."""
    piece = Piece(name="facts", measure=read_facts, settings={}, seconds=FACTS_SECONDS)
    outcome = bench.run(piece)
    if outcome.word != "done" and not bench.stopped:
        bench.keep(replace(outcome, piece=replace(piece, name="facts forked", ours=False)))
        bench.method = "spawn"
        outcome = bench.run(piece)
    bench.keep(outcome)
    bench.facts = outcome.result or {}


def _shortened(piece: Piece, left: float) -> Piece:
    """The piece, with fewer seconds for a training if less time is left."""
    if "seconds" not in piece.settings:
        return piece
    return replace(piece, settings={**piece.settings, "seconds": min(piece.settings["seconds"], 0.5 * left)})


def _too_large(piece: Piece, predictions: Sequence[Running], memory: int | None) -> str:
    """Why a training cannot fit into this memory, by the predictions so far; empty if it may fit."""
    for running in predictions if piece.kind == "training" and memory is not None else ():
        components = (so_far(running) or {}).get(piece.settings["rung"], {})
        needed = sum(size for name, size in components.items() if name != "allowance")
        if place(running.piece) == place(piece) and memory is not None and needed > memory:
            return f"the dry run expects {needed / 1e9:.0f} GB, the card has {memory / 1e9:.0f}"
    return ""
