"""tools/gpu: the whole command on a machine without a GPU, its failures, and the packs that are made for it."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lmms.configs.manifest import open_dataset
from lmms.train.flops import model_cost
from lmms.train.recipe import make_recipe
from tools.gpu.configs import read_config
from tools.gpu.plan import find_runs
from tools.gpu.prepare import MODELS, prepare
from tools.gpu.stages import ROOT, Stages

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the command trains full-size models")


def gpu_run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "gpu" / "run", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], dict]:
    out = tmp_path_factory.mktemp("gpu") / "report.json"
    run = gpu_run("--out", out)
    return run, json.loads(out.read_text(encoding="utf-8"))


@without_gpu
def test_every_check_passes_on_the_cpu(finished: tuple[subprocess.CompletedProcess[str], dict]) -> None:
    run, report = finished
    assert run.returncode == 0, run.stdout + run.stderr
    assert "passed in" in run.stdout
    assert "no MFU" in run.stdout
    assert report["passed"]
    assert report["failures"] == []
    assert report.keys() == {"date", "passed", "seconds", "facts", "checks", "models", "failures"}
    assert report["facts"]["device"] == "cpu"
    assert report["facts"]["cuda"] is None
    assert report["facts"]["torch"] == torch.__version__
    assert report["facts"]["matmul_flops"] > 1e8
    names = [check["name"] for check in report["checks"]]
    assert len(names) == 7
    for part in ("Qwen2.5-VL-3B windows", "Qwen3-VL-2B language", "Qwen3-VL-8B images", "loss, "):
        assert any(part in name for name in names)
    for check in report["checks"]:
        assert check["passed"]
        assert all(0 < check["errors"][name] <= allowed for name, allowed in check["tolerances"].items())


@without_gpu
def test_training_on_the_cpu_is_measured_in_full(finished: tuple[subprocess.CompletedProcess[str], dict]) -> None:
    models = finished[1]["models"]
    assert [(m["precision"], m["seq_len"]) for m in models] == [(p, n) for p in ("fp32", "bf16") for n in (256, 1024)]
    for model in models:
        assert model["passed"]
        assert model["faults"] == []
        assert model["model"] == "demo"
        assert all(math.isfinite(loss) for loss in model["losses"])
        assert model["losses"][-1] < model["losses"][0] - 0.5
        assert len(model["losses"]) == len(model["step_seconds"]) + 2
        assert model["tokens_per_s"] == pytest.approx(
            model["tokens"] * len(model["step_seconds"]) / sum(model["step_seconds"])
        )
        assert 0 <= model["data_wait"] < 1
        assert model["mfu"] is None
        assert model["matmul_share"] > 0
        assert model["peak_memory"] > 10**8
        assert model["images"] == 24
        assert model["patches"] > 0
    whole = {key: {m[key] for m in models} for key in ("tokens", "target_tokens", "model_flops", "parameters")}
    assert all(len(values) == 1 for values in whole.values()), "the same conversations, however they are packed"
    assert models[0]["packs"] > models[1]["packs"]
    assert models[0]["losses"][0] == pytest.approx(models[1]["losses"][0], abs=1e-5)


def test_without_packs_the_command_says_how_to_make_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run = gpu_run("--packs", tmp_path / "empty", "--out", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert run.returncode == 1
    assert not report["passed"]
    assert "tools/gpu/prepare" in report["failures"][0]["error"]
    assert report["checks"] == []


def test_a_stage_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    stages = Stages(tmp_path, time.monotonic() + 60, Console(quiet=True))
    assert stages.run("nonsense", 60, {}, "the label") == []
    assert [failure["stage"] for failure in stages.failures] == ["the label"]
    assert "ValueError: no stage is called 'nonsense'" in stages.failures[0]["error"]


def test_a_stage_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    stages = Stages(tmp_path, time.monotonic() + 60, Console(quiet=True))
    assert stages.run("facts", 0.05, {}) == []
    assert stages.failures[0]["error"].startswith("not done after 0 s")


def test_real_packs_are_made_for_both_models_and_fit_them(shared: Path, tmp_path: Path) -> None:
    prepare(shared, tmp_path, {1024: 1, 2048: 2}, 128 * 28 * 28, Console(quiet=True))
    runs = find_runs(tmp_path, cuda=True, thin=False)
    assert [Path(run.model).name for run in runs] == [model.name for model in MODELS]
    parameters = []
    for run in runs:
        datasets = [open_dataset(Path(shards)) for shards in run.shards]
        assert [dataset.manifest.seq_len for dataset in datasets] == [1024, 2048]
        assert [dataset.manifest.counts["read"] for dataset in datasets] == [7, 14]
        for thin in (True, False):
            config = read_config(Path(run.model), thin)
            assert make_recipe([datasets[0].manifest], config, "stop").family == config.model_type
            parameters.append(model_cost(config).token / 6)
    # Linear weights of the language models' blocks: 36 of 11008 x 2048 with 2 key heads, 28 of 6144 x 2048 with 8.
    qwen2_5 = 36 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008)
    qwen3 = 28 * (2 * 2048 * 2048 + 2 * 2048 * 1024 + 3 * 2048 * 6144)
    assert [parameters[1], parameters[3]] == [qwen2_5, qwen3]
    assert max(parameters[0], parameters[2]) < 2e6
