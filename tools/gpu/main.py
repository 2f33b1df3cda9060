"""tools/gpu/run: the pieces in order of their worth, and what came of them as JSON and as tables."""

import argparse
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.gpu.bench import Bench
from tools.gpu.processes import Piece, Running, begin, not_begun, so_far
from tools.gpu.schedule import BUDGET, FACTS_SECONDS, latest, memory_pieces, pack_pieces, pieces
from tools.gpu.show import show
from tools.gpu.sizes import FULL, MINI, MINI_ON_GPU

ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 200
"""Columns of the tables in a log."""


def main(began: float) -> int:
    """The command, which began at this time of time.monotonic. 0 when all of ours went through without a fault."""
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
        for piece, left in latest(pieces(Path(), FULL), arguments.seconds):
            when = "if others take less" if left is None else f"after {arguments.seconds - left:.0f} s at the latest"
            screen.print(f"{piece.name}  ({piece.seconds:.0f} s at most, {when})", markup=False, soft_wrap=True)
        return 0
    with tempfile.TemporaryDirectory(prefix="lmms-gpu-", ignore_cleanup_errors=True) as scratch:
        bench = Bench(Path(scratch), arguments.out, began + arguments.seconds, screen, began)
        with stopping(bench):
            report = measure(bench, arguments.only, mini=arguments.mini)
    show(report, screen)
    screen.print(f"wrote {bench.out}", markup=False, soft_wrap=True)
    return 0 if report["passed"] else 1


@contextmanager
def stopping(bench: Bench) -> Iterator[None]:
    """Within it a signal to end lets the piece that runs be killed, and the report be written and shown."""

    def stop(number: int, _: object) -> None:
        bench.stopped = f"stopped by {signal.Signals(number).name}"

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def measure(bench: Bench, only: str, *, mini: bool) -> dict[str, Any]:
    """Every piece that there is time for. Without a GPU all is done in miniature."""
    _read_facts(bench)
    cuda = bench.facts.get("cuda") is not None
    sizes = bench.sizes = MINI if not cuda else MINI_ON_GPU if mini else FULL
    device = "-".join(str(bench.facts.get("device", "unknown")).lower().split())
    name = f"{device}-{datetime.now(UTC).date()}{'' if sizes is FULL else '-mini'}.json"
    bench.out = (bench.out or ROOT / "docs" / "gpu" / name).resolve()
    bench.out.parent.mkdir(parents=True, exist_ok=True)
    folder = bench.scratch / "packs"
    chosen = [piece for piece in pieces(folder, sizes) if re.search(only, piece.name)]
    packs = list(pack_pieces(folder, sizes))
    memory = [piece for piece in memory_pieces(folder, sizes) if any(_predicts(piece, other) for other in chosen)]
    bench.waiting = [*packs, *memory, *chosen]
    bench.write()
    for running in [begin(piece, bench.scratch, bench.method) for piece in packs if not bench.stopped]:
        bench.keep(bench.end(running))
    beside = [begin(piece, bench.scratch, bench.method) for piece in memory if not bench.stopped]
    for piece in chosen:
        if bench.stopped:
            break
        short = _too_large(piece, beside, bench.facts.get("memory"))
        bench.keep(not_begun(piece, "no memory", short) if short else bench.run(_shortened(piece, bench.left)))
    for running in beside:
        bench.keep(bench.end(running))
    return bench.write()


def _read_facts(bench: Bench) -> None:
    """What machine this is; and whether forked processes can use its GPU."""
    piece = Piece(name="facts", kind="facts", settings={}, seconds=FACTS_SECONDS)
    found = bench.run(piece)
    if found.outcome != "done" and not bench.stopped:
        bench.keep(replace(found, name="facts, forked", ours=False))
        bench.method = "spawn"
        found = bench.run(piece)
    bench.keep(found)
    bench.facts = found.result or {}


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
