"""tools/gpu/run: the whole command on a machine without a GPU, in miniature; the pieces' own tests are in gpu/."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.gpu.main import ROOT, main
from tools.gpu.pieces.ladder import LEAST
from tools.gpu.rivals.comparator import STAND_IN

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the command trains full-size models")

SOME = (
    "ceilings|products Qwen2.5-VL-3B vision|attention (varlen|flash-attn-2)|loss (chunked|liger)$"
    rf"|training Qwen2.5-VL-3B vision (\{LEAST}|eager|\{LEAST}, flash-attn-3)$"
    f"|comparator Qwen2.5-VL-3B (padded|{STAND_IN}|.*varlen, liger)"
)
BARE = f"""
import os, sys
for name in {("obstore", "typer", "streaming", "peft", "polars", "torchvision")}:
    sys.modules[name] = None
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path[:] = [folder for folder in sys.path if "editable" not in folder]
import torch
command = os.getpid()
def asked(*_):
    if os.getpid() == command:
        raise SystemExit("CUDA was started in the process that others are forked from, which cannot use it then")
    return 0
torch.cuda._lazy_init = torch._C._cuda_getDeviceCount = asked
"""
"""Python as on a bare CUDA image: neither lmms nor what is seldom there can be imported."""


def gpu_run(folder: Path, *arguments: str, bare: bool = False) -> tuple["subprocess.Popen[str]", Path]:
    """The command, begun, and its report."""
    command = [sys.executable, str(ROOT / "tools" / "gpu" / "run"), "--out", str(folder / "report.json"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if bare:
        (folder / "sitecustomize.py").write_text(BARE, encoding="utf-8")
        environment["PYTHONPATH"] = str(folder)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=folder
    )
    return process, folder / "report.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What the command said on a bare image, and its report."""
    process, report = gpu_run(tmp_path_factory.mktemp("gpu"), "--seconds", "900", "--only", SOME, bare=True)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said, json.loads(report.read_text(encoding="utf-8"))


def test_a_miniature_of_every_kind_of_piece_runs_on_a_bare_image(finished: tuple[str, dict[str, Any]]) -> None:
    said, report = finished
    assert (report["passed"], report["complete"], report["faults"]) == (True, True, [])
    assert (report["facts"]["device"], report["facts"]["torch"]) == ("cpu", torch.__version__)
    assert report["sizes"]["thin"]
    outcomes = {piece["name"]: piece["outcome"] for piece in report["pieces"]}
    left_out = {name for name, outcome in outcomes.items() if outcome != "done"}
    assert left_out == report["missing"].keys()
    assert left_out == {
        "attention flash-attn-2",
        "loss liger",
        "comparator Qwen2.5-VL-3B packed, varlen, liger, linear patches",
        f"training Qwen2.5-VL-3B vision {LEAST}, flash-attn-3",
    }
    assert {piece["kind"] for piece in report["pieces"]} == {
        *("facts", "packs", "memory", "ceilings", "products", "attention", "loss", "training", "comparator")
    }
    for part in (
        *("passed in", "which comparators count", "without Liger it is another recipe", "no MFU", "not done"),
        *("training steps", "wrote"),
    ):
        assert part in said
    # Figures of a miniature are nobody's goals.
    assert report["goals"] == []


def test_a_training_is_the_trainers_own_and_measured_in_full(finished: tuple[str, dict[str, Any]]) -> None:
    results = {piece["name"]: piece["result"] for piece in finished[1]["pieces"]}
    best, eager = (results[f"training Qwen2.5-VL-3B vision {rung}"] for rung in (LEAST, "eager"))
    theirs = [results[f"comparator Qwen2.5-VL-3B {name}"] for name in ("padded, sdpa", STAND_IN)]
    for training in (best, eager, *theirs):
        assert training["faults"] == []
        assert training["tokens"] == 512
        assert training["patches"] > 0
        assert training["steps"]["losses"][-1] < training["steps"]["losses"][0]
        assert training["steps"]["recompiles"] == 0
        assert training["steps"]["peak_memory"] > 10**8
        assert training["tokens_per_s"] == pytest.approx(training["tokens"] / training["seconds"])
        assert training["trace"]["kernels"] == 0
        # The same weights, packs, loss and step: so the same numbers, whoever computes them.
        assert training["steps"]["losses"][0] == pytest.approx(best["steps"]["losses"][0], rel=1e-5)
        assert training["steps"]["grad_norms"][0] == pytest.approx(best["steps"]["grad_norms"][0], rel=1e-4)
        for name in ("parameters", "trained", "target_tokens", "flops", "optimizer_bytes"):
            assert training[name] == best[name]
    assert best["steps"]["graphs"] >= 3
    assert eager["steps"]["graphs"] == 0
    assert any("kernels: attention sdpa" in line for line in eager["says"])


def test_floors_and_the_dry_run_stand_beside_what_was_measured(finished: tuple[str, dict[str, Any]]) -> None:
    (best, *_) = finished[1]["trainings"]
    assert best["name"] == LEAST
    assert best["predicted_memory"] > 10**9
    # Liger needs a GPU, and nothing else is the packed recipe.
    assert best["times the packed recipe"] is None
    assert not any(rival["counted"] for rival in finished[1]["recipes"])
    assert best["floors"].keys() == {
        *("gemm", "attention", "elementwise", "loss", "optimizer", "copy", "communication")
    }
    assert best["times its floor"] == pytest.approx(best["seconds"] / sum(best["floors"].values()))
    assert best["mfu"] is None


def test_the_command_that_is_told_to_end_leaves_its_report(tmp_path: Path) -> None:
    process, path = gpu_run(tmp_path, "--only", "^ceilings|^loss")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("facts")
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    report = json.loads(path.read_text(encoding="utf-8"))
    assert (report["stopped"], report["complete"]) == ("stopped by SIGINT", False)
    assert {"ceilings", "loss chunked"} <= report["missing"].keys()
    assert "stopped by SIGINT in" in said


def test_the_pieces_can_be_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--list"])
    assert main(time.monotonic()) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "ceilings  (40 s at most)"
    assert f"training Qwen3-VL-2B vision {LEAST}  (150 s at most)" in listed
