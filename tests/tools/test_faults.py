"""The campaign of faults, in a bounded form; and that it would see what it looks for."""

import json
import subprocess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from tools.compare_runs import read_steps
from tools.faults.campaign import STEPS, Findings, compared
from tools.faults.main import leftovers, report
from tools.faults.page import ROOT


@pytest.mark.campaign
def test_random_faults_lose_repeat_and_change_nothing(tmp_path: Path) -> None:
    page = tmp_path / "faults.md"
    command = [ROOT / "tools" / "faults" / "run", "--faults", "8", "--minutes", "3", "--seed", "4", "--report", page]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "**None of them lost, repeated or changed a step, hung or left anything behind.**" in page.read_text()


def write_log(folder: Path, steps: list[int], **changed: object) -> Path:
    folder.mkdir()
    lines = [
        {"step": i, "digest": f"{i:016x}", "position": 4 * i, "loss": 3.0, "eval_loss": None, **changed} for i in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("steps", "changed", "seen"),
    [
        ([*range(1, STEPS)], {}, "its steps are"),
        ([*range(1, STEPS + 1), STEPS], {}, "its steps are"),
        ([*range(1, STEPS + 1)], {"digest": "f" * 16}, "step 1 consumed"),
        ([*range(1, STEPS + 1)], {"loss": 3.0001}, "step 1 has loss"),
    ],
)
def test_a_lost_repeated_or_different_step_is_seen(
    tmp_path: Path, steps: list[int], changed: dict[str, object], seen: str
) -> None:
    undisturbed = write_log(tmp_path / "undisturbed", [*range(1, STEPS + 1)])
    assert compared(undisturbed, undisturbed) == []
    assert len(read_steps(undisturbed)) == STEPS
    assert compared(undisturbed, write_log(tmp_path / "run", steps, **changed))[0].startswith(seen)


def test_what_is_left_behind_is_seen(tmp_path: Path) -> None:
    before = leftovers(tmp_path)
    (tmp_path / "pymp-x").mkdir()
    assert leftovers(tmp_path) - before == {str(tmp_path / "pymp-x")}


def test_the_page_says_what_went_wrong() -> None:
    page = report(Findings(wrong=["run 3: its steps are [1, 1]"]), seed=5)
    assert "**1 of them lost" in page
    assert "- run 3: its steps are [1, 1]" in page


def test_shared_memory_counts_once_its_last_process_has_ended(tmp_path: Path) -> None:
    made = SharedMemory(create=True, size=16)
    name = f"/dev/shm/{made.name}"
    try:
        assert name not in leftovers(tmp_path)
        made.close()
        assert name in leftovers(tmp_path)
    finally:
        made.unlink()
    assert name not in leftovers(tmp_path)
