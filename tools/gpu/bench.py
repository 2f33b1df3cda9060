"""What is known of a run of the bench: kept as it comes, and on disk, whole, after each piece."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tools.gpu.piece import write_json
from tools.gpu.processes import Found, Piece, Running, begin, end, not_begun
from tools.gpu.schedule import allowed
from tools.gpu.sizes import Sizes
from tools.gpu.summary import summarise


@dataclass(slots=True)
class Bench:
    """A run of the command."""

    scratch: Path
    out: Path | None
    deadline: float
    """Of all pieces together, on the clock of time.monotonic."""
    screen: Console
    began: float
    """On that clock."""
    sizes: Sizes | None = None
    method: Literal["fork", "spawn"] = "fork"
    found: list[Found] = field(default_factory=list)
    waiting: list[Piece] = field(default_factory=list)
    """What it has not come to, or is at."""
    facts: dict[str, Any] = field(default_factory=dict)
    stopped: str = ""
    """Why it is to end before its time; see main.stopping."""

    @property
    def left(self) -> float:
        """Seconds."""
        return max(self.deadline - time.monotonic(), 0.0)

    def run(self, piece: Piece) -> Found:
        """Begin a piece if there is time, and wait for its end."""
        if self.stopped or not allowed(piece, self.left):
            return not_begun(piece, "not run", self.stopped or f"{self.left:.0f} s were left")
        return self.end(begin(piece, self.scratch, self.method))

    def end(self, running: Running) -> Found:
        """What comes of a piece that was begun. It is no fault of a piece that the bench's own time was over."""
        own, left = running.began + running.piece.seconds - time.time(), self.left
        found = end(running, min(own, left), lambda: self.stopped)
        if found.outcome == "too slow" and left < own:
            return replace(found, outcome="not run", error=f"the bench's time was over; {found.error}")
        return found

    def keep(self, found: Found) -> None:
        """Say what came of a piece, and write all that is known so far."""
        self.found.append(found)
        self.waiting = [piece for piece in self.waiting if piece.name != found.name]
        said = "" if found.outcome == "done" else f": {found.outcome}: {_last_line(found.error)}"
        self.screen.print(f"{found.name}, {found.seconds:.0f} s{said}", markup=False, highlight=False, style="dim")
        self.write()

    def write(self) -> dict[str, Any]:
        """The report as it is now, which is also on disk."""
        report = self.report()
        if self.out:
            write_json(self.out, report)
        return report

    def report(self) -> dict[str, Any]:
        """All of it, as JSON has it: every piece of the schedule, with what came of it or why nothing did."""
        ahead = [not_begun(piece, "not run", self.stopped or "the bench has not come to it") for piece in self.waiting]
        pieces = [asdict(one) for one in (*self.found, *ahead)]
        summary: dict[str, Any] = {"trainings": [], "recipes": [], "goals": []}
        if self.sizes:
            summary = {"sizes": asdict(self.sizes), **summarise({"facts": self.facts, "pieces": pieces}, self.sizes)}
        faults = [one["piece"] for one in summary["trainings"] if one["ours"] and not one["passed"]]
        faults += [one.name for one in self.found if one.ours and (_ended_badly(one) or not _passed(one))]
        complete = not (self.waiting or self.stopped)
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - self.began,
            "complete": complete,
            "passed": complete and not faults,
            "stopped": self.stopped,
            "faults": sorted(set(faults)),
            "missing": {
                one["name"]: f"{one['outcome']}: {_last_line(one['error'])}" for one in pieces if _missing(one)
            },
            "processes": self.method,
            "facts": self.facts,
            **summary,
            "pieces": pieces,
        }


def _missing(piece: Mapping[str, Any]) -> bool:
    return bool(piece["outcome"] != "done")


def _ended_badly(found: Found) -> bool:
    return found.outcome in ("failed", "too slow")


def _passed(found: Found) -> bool:
    results = found.result if isinstance(found.result, list) else [found.result or {}]
    return all(result.get("passed", True) for result in results)


def _last_line(error: str) -> str:
    return error.strip().rpartition("\n")[2][:200]
