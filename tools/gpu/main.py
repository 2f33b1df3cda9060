"""tools/gpu/run: the stages in order, each a process of its own, and what came of them as JSON and as tables.

A stage that fails or runs out of time is named in the report and in the exit status; the others still run. Processes of
their own, since a kernel that fails leaves CUDA unusable for the rest of a process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from tools.gpu.show import show

ROOT = Path(__file__).resolve().parents[2]
PACKS = ROOT / "tools" / "gpu" / "packs"
BUDGET = 480.0
"""Seconds in all."""
CHECK_SECONDS = 90.0
"""Longest time for a stage that trains nothing."""
_ERROR_TAIL = 1500

Report = dict[str, Any]


@dataclass(slots=True)
class Stages:
    """Runs stages until the time is used up, and keeps what failed."""

    environment: Mapping[str, str]
    scratch: Path
    deadline: float
    screen: Console
    failures: list[dict[str, str]]

    def run(self, name: str, settings: Mapping[str, Any], seconds: float) -> list[dict[str, Any]]:
        """The results that a stage gave, up to where it failed if it did."""
        seconds = max(min(seconds, self.deadline - time.monotonic()), 1.0)
        self.screen.print(f"[bold cyan]{name}[/] [dim]{' '.join(str(value) for value in settings.values())}[/]")
        results, errors = self.scratch / "results.json", self.scratch / "errors.txt"
        results.write_text("[]", encoding="utf-8")
        command = [sys.executable, "-m", "tools.gpu.stage", name, json.dumps(settings), str(results)]
        fault = ""
        with errors.open("w", encoding="utf-8") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stderr=file)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                fault = f"not done after {seconds:.0f} s; "
        if process.returncode:
            tail = errors.read_text(encoding="utf-8", errors="replace").strip()[-_ERROR_TAIL:]
            fault += f"status {process.returncode}: {tail}"
            self.failures.append({"stage": name, "settings": json.dumps(settings), "error": fault})
            self.screen.print(f"  failed: {fault}", style="red", markup=False)
        found: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
        return found


def main() -> int:
    """The command: 0 when every stage ran and every check passed."""
    parser = argparse.ArgumentParser(prog="tools/gpu/run", description="Train full-size models for a few steps.")
    parser.add_argument("--packs", type=Path, help=f"packs of tools/gpu/prepare; with CUDA by default {PACKS}")
    parser.add_argument("--out", type=Path, help="JSON file to write; by default docs/gpu/DEVICE-DATE.json")
    arguments = parser.parse_args()
    screen = Console()
    with tempfile.TemporaryDirectory(prefix="lmms-gpu-") as scratch:
        report = measure(arguments.packs, Path(scratch), screen)
    show(report, screen)
    device = "-".join(report["facts"].get("device", "unknown").lower().split())
    out = arguments.out or ROOT / "docs" / "gpu" / f"{device}-{report['date'][:10]}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    screen.print(f"wrote {out}", markup=False, soft_wrap=True)
    return 0 if report["passed"] else 1


def measure(packs: Path | None, scratch: Path, screen: Console) -> Report:
    """Run every stage. packs: as made by tools/gpu/prepare, or None for the default of this machine."""
    began = time.monotonic()
    stages = Stages(environment(scratch), scratch, began + BUDGET, screen, [])
    facts = (stages.run("facts", {}, CHECK_SECONDS) or [{}])[0]
    cuda = facts.get("cuda") is not None
    folder = packs or (PACKS if cuda else scratch / "packs")
    if folder == scratch / "packs":
        stages.run("draw", {"out": str(folder)}, CHECK_SECONDS)
    runs = find_runs(folder, cuda, drawn=folder == scratch / "packs")
    if not runs:
        advice = "make them with tools/gpu/prepare where ../shared is, and carry them here"
        stages.failures.append({"stage": "train", "settings": "", "error": f"no packs in {folder}; {advice}"})
    # Without anything to train on there is no use in holding the machine for the rest.
    checks = [check for name in ("attention", "loss") if runs for check in stages.run(name, {}, CHECK_SECONDS)]
    models = []
    for i, run in enumerate(runs):
        seconds = (stages.deadline - time.monotonic()) / (len(runs) - i)
        settings = {**asdict(run), "seconds": 0.8 * seconds, "peak": facts.get("peak_flops")}
        models += stages.run("train", {**settings, "matmul": facts.get("matmul_flops")}, seconds)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "passed": not stages.failures and all(result["passed"] for result in (*checks, *models)),
        "seconds": round(time.monotonic() - began, 1),
        "facts": facts,
        "checks": checks,
        "models": models,
        "failures": stages.failures,
    }
