"""tools/gpu/run: the pieces in order of their worth, and what came of them as JSON and as tables."""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from tools.gpu.piece import write_json
from tools.gpu.processes import Found, Piece, Running, begin, end, not_begun, so_far
from tools.gpu.schedule import memory_pieces, pack_pieces, pieces
from tools.gpu.show import show
from tools.gpu.sizes import FULL, MINI, MINI_ON_GPU
from tools.gpu.summary import summarise

ROOT = Path(__file__).resolve().parents[2]
BUDGET = 465.0
"""Seconds in all; what is left of 8 minutes is for ending."""
_OURS = ("attention varlen", "loss chunked")
"""Pieces whose wrong numbers are a fault of lmms; those of others are shown."""
_FACTS_SECONDS = 60.0
_WIDTH = 200
"""Columns of the tables in a log."""


def main() -> int:
    """The command. 0 when every piece that was begun came to an end without a fault, else 1."""
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
        for piece in pieces(Path(), FULL):
            screen.print(piece.name, markup=False)
        return 0
    with tempfile.TemporaryDirectory(prefix="lmms-gpu-") as scratch:
        bench = Bench(Path(scratch), arguments.out, time.monotonic() + arguments.seconds, screen)
        report = measure(bench, arguments.only, mini=arguments.mini)
    show(report, screen)
    screen.print(f"wrote {bench.out}", markup=False, soft_wrap=True)
    return 0 if report["passed"] else 1


@dataclass(slots=True)
class Bench:
    """A run of the command."""

    scratch: Path
    out: Path | None
    deadline: float
    """Of all pieces together, on the clock of time.monotonic."""
    screen: Console
    method: Literal["fork", "spawn"] = "fork"
    began: float = field(default_factory=time.monotonic)
    found: list[Found] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def keep(self, found: Found) -> None:
        """Say what came of a piece, and write all that is known so far."""
        self.found.append(found)
        said = "" if found.outcome == "done" else f": {found.outcome}: {_last_line(found.error)}"
        self.screen.print(f"{found.name}, {found.seconds:.0f} s{said}", markup=False, highlight=False, style="dim")
        if self.out:
            write_json(self.out, self.report({}))

    def report(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - self.began,
            "processes": self.method,
            "facts": self.facts,
            **summary,
            "pieces": [asdict(one) for one in self.found],
        }


def measure(bench: Bench, only: str, *, mini: bool) -> dict[str, Any]:
    """Every piece that there is time for. Without a GPU all is done in miniature."""
    _read_facts(bench)
    cuda = bench.facts.get("cuda") is not None
    sizes = MINI if not cuda else MINI_ON_GPU if mini else FULL
    device = "-".join(str(bench.facts.get("device", "unknown")).lower().split())
    name = f"{device}-{datetime.now(UTC).date()}{'' if sizes is FULL else '-mini'}.json"
    bench.out = (bench.out or ROOT / "docs" / "gpu" / name).resolve()
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    folder = bench.scratch / "packs"
    chosen = [piece for piece in pieces(folder, sizes) if re.search(only, piece.name)]
    for running in [begin(piece, bench.scratch, bench.method) for piece in pack_pieces(folder, sizes)]:
        bench.keep(end(running, min(running.piece.seconds, bench.left)))
    beside = [
        begin(piece, bench.scratch, bench.method)
        for piece in memory_pieces(folder, sizes)
        if any(_predicts(piece, other) for other in chosen)
    ]
    for piece in chosen:
        short = _too_large(piece, beside, bench.facts.get("memory"))
        bench.keep(not_begun(piece, "no memory", short) if short else _run(bench, _shortened(piece, bench.left)))
    for running in beside:
        bench.keep(end(running, bench.left))
    summary = {"sizes": asdict(sizes), **summarise(bench.report({}), sizes)}
    faults = [one for one in summary["trainings"] if not one["passed"]]
    failed = [one for one in bench.found if one.outcome in ("failed", "too slow")]
    wrong = [one for one in bench.found if one.name.startswith(_OURS) and not _passed(one)]
    report = bench.report({"passed": not (faults or failed or wrong), **summary})
    write_json(bench.out, report)
    return report


def _read_facts(bench: Bench) -> None:
    """What machine this is; and whether forked processes can use its GPU."""
    piece = Piece(name="facts", kind="facts", settings={}, seconds=_FACTS_SECONDS)
    found = _run(bench, piece)
    if found.outcome != "done":
        bench.keep(found)
        bench.method = "spawn"
        found = _run(bench, piece)
    bench.keep(found)
    bench.facts = found.result or {}


def _run(bench: Bench, piece: Piece) -> Found:
    if bench.left < piece.least:
        return not_begun(piece, "not run", f"{max(bench.left, 0):.0f} s were left")
    return end(begin(piece, bench.scratch, bench.method), min(piece.seconds, bench.left))


def _shortened(piece: Piece, left: float) -> Piece:
    """A training plans with what is left, where that is less."""
    if "seconds" not in piece.settings:
        return piece
    seconds = min(piece.settings["seconds"], 0.5 * left)
    return replace(piece, settings={**piece.settings, "seconds": seconds})


def _predicts(memory: Piece, other: Piece) -> bool:
    """Whether a piece is a training whose memory the first one predicts."""
    return other.kind == "training" and all(other.settings[key] == memory.settings[key] for key in ("model", "packs"))


def _too_large(piece: Piece, beside: Sequence[Running], memory: int | None) -> str:
    """Why a training cannot fit into this memory, as far as that is known by now; empty where it may."""
    for running in beside:
        if memory is None or not _predicts(running.piece, piece):
            continue
        components = (so_far(running) or {}).get(piece.settings["rung"], {})
        needed = sum(size for name, size in components.items() if name != "allowance")
        if needed > memory:
            return f"the dry run expects {needed / 1e9:.0f} GB, the card has {memory / 1e9:.0f}"
    return ""


def _passed(found: Found) -> bool:
    results = found.result if isinstance(found.result, list) else [found.result or {}]
    return all(result.get("passed", True) for result in results)


def _last_line(error: str) -> str:
    return error.strip().rpartition("\n")[2][:200]
