"""tools/gpu/run: the whole command on a machine without a GPU, in miniature; the pieces' own tests are in gpu/."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.gpu.main import ROOT, main
from tools.gpu.rungs import LEAST

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the command trains full-size models")

SOME = (
    "ceilings|products Qwen2.5-VL-3B vision|attention (varlen|flash-attn-2)|loss (chunked|liger)$"
    rf"|training Qwen2.5-VL-3B vision (\{LEAST}|eager|\{LEAST}, flash-attn-3)$"
    "|comparator Qwen2.5-VL-3B (padded|.* chunked loss$|.* chunked loss, linear|.*varlen, liger$)"
)


def gpu_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "gpu" / "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    out = tmp_path_factory.mktemp("gpu") / "report.json"
    run = gpu_run("--out", out, "--seconds", 900, "--only", SOME)
    return run, json.loads(out.read_text(encoding="utf-8"))


def test_a_miniature_of_every_kind_of_piece_runs_on_a_cpu(finished: tuple[Any, dict[str, Any]]) -> None:
    run, report = finished
    assert run.returncode == 0, run.stdout + run.stderr
    assert report["passed"]
    assert report["complete"]
    assert report["faults"] == []
    assert report["facts"]["device"] == "cpu"
    assert report["facts"]["torch"] == torch.__version__
    assert report["sizes"]["thin"]
    outcomes = {piece["name"]: piece["outcome"] for piece in report["pieces"]}
    assert {name for name, outcome in outcomes.items() if outcome != "done"} == {
        "attention flash-attn-2",
        "loss liger",
        "comparator Qwen2.5-VL-3B packed, varlen, liger",
        f"training Qwen2.5-VL-3B vision {LEAST}, flash-attn-3",
    }
    assert {piece["kind"] for piece in report["pieces"]} == {
        *("facts", "packs", "memory", "ceilings", "products", "attention", "loss", "training", "comparator")
    }
    assert report["missing"].keys() == {name for name, outcome in outcomes.items() if outcome != "done"}
    for part in (
        "passed in",
        "which comparators count",
        "without Liger it only stands in",
        "no MFU",
        "not done",
        "training steps",
        "wrote",
    ):
        assert part in run.stdout
    # Figures of a miniature are nobody's goals.
    assert report["goals"] == []


def test_a_training_is_the_trainers_own_and_measured_in_full(finished: tuple[Any, dict[str, Any]]) -> None:
    found = {piece["name"]: piece["result"] for piece in finished[1]["pieces"]}
    best, eager = (found[f"training Qwen2.5-VL-3B vision {rung}"] for rung in (LEAST, "eager"))
    padded = found["comparator Qwen2.5-VL-3B padded, sdpa"]
    packed = found["comparator Qwen2.5-VL-3B packed, varlen, chunked loss"]
    linear = found["comparator Qwen2.5-VL-3B packed, varlen, chunked loss, linear patches"]
    for one in (best, eager, padded, packed, linear):
        assert one["faults"] == []
        assert one["tokens"] == 512
        assert one["patches"] > 0
        assert one["steps"]["losses"][-1] < one["steps"]["losses"][0]
        assert one["steps"]["recompiles"] == 0
        assert one["steps"]["peak_memory"] > 10**8
        assert one["tokens_per_s"] == pytest.approx(one["tokens"] / one["seconds"])
        assert one["trace"]["kernels"] == 0
        # The same weights, packs, loss and step: so the same numbers, whoever computes them.
        assert one["steps"]["losses"][0] == pytest.approx(best["steps"]["losses"][0], rel=1e-5)
        assert one["steps"]["grad_norms"][0] == pytest.approx(best["steps"]["grad_norms"][0], rel=1e-4)
        for name in ("parameters", "trained", "target_tokens", "flops", "optimizer_bytes"):
            assert one[name] == best[name]
    assert best["steps"]["graphs"] >= 3
    assert eager["steps"]["graphs"] == 0
    assert any("kernels: attention sdpa" in line for line in eager["says"])


def test_floors_and_the_dry_run_stand_beside_what_was_measured(finished: tuple[Any, dict[str, Any]]) -> None:
    (best, *_) = finished[1]["trainings"]
    assert best["name"] == LEAST
    assert best["predicted_memory"] > 10**9
    # Liger needs a GPU, and nothing else is the packed recipe.
    assert best["times the packed recipe"] is None
    assert {one["name"]: one["counted"] for one in finished[1]["recipes"]}.pop("packed, varlen, liger") is False
    assert best["floors"].keys() == {
        *("gemm", "attention", "elementwise", "loss", "optimizer", "copy", "communication")
    }
    assert best["times its floor"] == pytest.approx(best["seconds"] / sum(best["floors"].values()))
    assert best["mfu"] is None


def test_without_time_every_piece_is_named_and_the_report_is_whole(tmp_path: Path) -> None:
    run = gpu_run("--out", tmp_path / "report.json", "--seconds", 3, "--only", "loss|training")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    pieces = [piece for piece in report["pieces"] if piece["kind"] in ("loss", "training")]
    assert len(pieces) > 20
    assert {piece["outcome"] for piece in pieces} == {"not run"}
    assert all("were left" in piece["error"] for piece in pieces)
    assert report["seconds"] < 60
    assert "not run" in run.stdout


def test_the_pieces_can_be_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--list"])
    assert main(time.monotonic()) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "ceilings  (40 s at most, after 120 s at the latest)"
    (one,) = (line for line in listed if line.startswith(f"training Qwen3-VL-2B vision {LEAST}  ("))
    assert one.endswith("if others take less)")
