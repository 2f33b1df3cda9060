"""Stages in processes of their own: a kernel that fails leaves CUDA unusable for the rest of its process.

A stage that fails, or is not done in time, is noted as a failure and keeps what it gave so far; the others still run.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parents[2]
_ROOMS = ("configs", "prep", "train", "cli")
_ERROR_TAIL = 2000


@dataclass(slots=True)
class Stages:
    """Runs stages until the time is used up."""

    scratch: Path
    deadline: float
    """Of all stages together, on the clock of time.monotonic."""
    screen: Console
    failures: list[dict[str, str]] = field(default_factory=list)
    """{stage, error} of each that failed."""

    def left(self) -> float:
        """Seconds until the deadline, at least 1."""
        return max(self.deadline - time.monotonic(), 1.0)

    def run(self, name: str, seconds: float, settings: Mapping[str, Any], label: str = "") -> list[dict[str, Any]]:
        """The results of a stage of stage.py, given at most these seconds. label: what people call it."""
        label = label or name
        limit, began = min(seconds, self.left()), time.monotonic()
        results, errors = self.scratch / "results.json", self.scratch / "errors.txt"
        results.write_text("[]", encoding="utf-8")
        command = [sys.executable, "-m", "tools.gpu.stage", name, json.dumps(settings), str(results)]
        late = ""
        with errors.open("wb") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=_environment(self.scratch), stderr=file)
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                late = f"not done after {limit:.0f} s\n"
        if process.returncode:
            self.fail(label, late + errors.read_text(encoding="utf-8", errors="replace").strip()[-_ERROR_TAIL:])
        self.screen.print(f"[dim]{label}: {time.monotonic() - began:.0f} s[/]")
        found: list[dict[str, Any]] = json.loads(results.read_text(encoding="utf-8"))
        return found

    def fail(self, name: str, error: str) -> None:
        """Note that a stage failed, and say so."""
        self.failures.append({"stage": name, "error": error})
        self.screen.print(f"{name} failed: {error}", style="red", markup=False)


def _environment(scratch: Path) -> dict[str, str]:
    """Of a process that imports this checkout's tools and lmms; `scratch` holds links where lmms is not installed."""
    paths = [str(ROOT)]
    if importlib.util.find_spec("lmms") is None:
        (scratch / "lmms").mkdir(exist_ok=True)
        for room in _ROOMS:
            link = scratch / "lmms" / room
            if not link.exists():
                link.symlink_to(ROOT / room)
        paths.append(str(scratch))
    paths += [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    # Two threads that wait for each other on busy cores are many times slower than one; a GPU needs none.
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
