"""tools/faults/exits: what each command ended with, counted."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_is_run_and_its_exits_are_counted() -> None:
    command = [sys.executable, ROOT / "tools" / "faults" / "exits", "--shard=1", "--verify=1", "--build=1", "--busy=1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert lines[:3] == [[name, "1", "x", "exit", "0"] for name in ("shard", "verify", "build")]
    assert lines[3][:3] == ["1", "busy", "processes,"]
