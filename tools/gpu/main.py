"""tools/gpu/run: the stages in order, and what came of them as JSON and as tables."""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.gpu.plan import find_runs
from tools.gpu.show import show
from tools.gpu.stages import ROOT, Stages

PACKS = ROOT / "tools" / "gpu" / "packs"
BUDGET = 470.0
"""Seconds in all."""
CHECK_SECONDS = 90.0
"""At most for a stage that trains nothing."""
TRAIN_SHARE = 0.8
"""Of its time that a training stage plans with; the rest is for loading libraries and for a last step."""


def main() -> int:
    """The command. 0 when every stage ran and every check passed, else 1."""
    parser = argparse.ArgumentParser(prog="tools/gpu/run", description="Train full-size models on this GPU, briefly.")
    parser.add_argument("--packs", type=Path, help=f"packs of tools/gpu/prepare (with CUDA: {PACKS})")
    parser.add_argument("--out", type=Path, help="JSON file to write (docs/gpu/DEVICE-DATE.json)")
    arguments = parser.parse_args()
    screen = Console()
    with tempfile.TemporaryDirectory(prefix="lmms-gpu-") as scratch:
        report = measure(arguments.packs and arguments.packs.resolve(), Path(scratch), screen)
    show(report, screen)
    device = "-".join(report["facts"].get("device", "unknown").lower().split())
    out = arguments.out or ROOT / "docs" / "gpu" / f"{device}-{report['date'][:10]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    screen.print(f"wrote {out}", markup=False, soft_wrap=True)
    return 0 if report["passed"] else 1


def measure(packs: Path | None, scratch: Path, screen: Console) -> dict[str, Any]:
    """Every stage. packs: a folder that plan.py describes, or None for the carried ones, without CUDA for drawn ones.

    Carried packs are for whole models: without CUDA these are cut down to thin ones.
    """
    began = time.monotonic()
    stages = Stages(scratch, began + BUDGET, screen)
    facts = next(iter(stages.run("facts", CHECK_SECONDS, {})), {})
    cuda = facts.get("cuda") is not None
    drawn = packs is None and not cuda
    folder = scratch / "packs" if drawn else packs or PACKS
    if drawn:
        stages.run("draw", CHECK_SECONDS, {"out": str(folder)})
    runs = [] if stages.failures else find_runs(folder, cuda=cuda, thin=not cuda and not drawn)
    if not runs and not stages.failures:
        advice = "make them with tools/gpu/prepare on a machine that has ../shared, and carry the folder here"
        stages.fail("train", f"there are no packs in {folder}; {advice}")
    # With nothing to train on there is no use in keeping the machine.
    checks = [check for name in ("attention", "loss") if runs for check in stages.run(name, CHECK_SECONDS, {})]
    models = []
    for i, run in enumerate(runs):
        seconds = stages.left() / (len(runs) - i)
        planned = {"seconds": TRAIN_SHARE * seconds, "matmul_flops": facts["matmul_flops"]}
        label = f"train {Path(run.model).name} in {run.precision}"
        models += stages.run("train", seconds, {"run": asdict(run), **planned}, label)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": not stages.failures and all(result["passed"] for result in (*checks, *models)),
        "seconds": time.monotonic() - began,
        "facts": facts,
        "checks": checks,
        "models": models,
        "failures": stages.failures,
    }
