"""Runs over several sets, with evaluation, with a best checkpoint, and under a scheduler's signals."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.load import to_yaml
from lmms.configs.settings.data import EvalConfig, ShareConfig
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name, list_checkpoints
from lmms.train.data.phases import read_phases
from lmms.train.data.sets import open_sets
from lmms.train.evaluation import Evaluation, evaluate
from lmms.train.run import train
from lmms.train.watch.metrics import METRICS_NAME
from tests.kit.runs import (
    SMALL_RUN,
    read_metrics,
    read_tensors,
    run_config,
    silent,
    train_on_ranks,
    without_waits,
    write_run,
)

GUARD_S = 600
"""Ends a test whose process hangs."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two folders with a run each, of one model: their shards are two sets."""
    folder = tmp_path_factory.mktemp("sets")
    for name, packs in (("a", 5), ("b", 12)):
        write_run(folder / name, "qwen3_vl", packs=packs)
    return {name: folder / name for name in "ab"}


def mixed(places: dict[str, Path], output: Path, **weights: float) -> TrainConfig:
    """A run of three steps over these sets by weight."""
    config = run_config(settings_of(places), output=str(output))
    shares = tuple(ShareConfig(shards=str(places[name] / "shards"), weight=w) for name, w in weights.items())
    return replace(config, data=replace(config.data, shards=None, mixture=shares))


def settings_of(places: dict[str, Path]) -> dict[str, Any]:
    """The settings of a run of three steps on the first set."""
    return {"model.path": str(places["a"] / "model"), "data.shards": str(places["a"] / "shards"), **SMALL_RUN}


def test_each_set_of_a_mixture_is_logged_and_their_losses_make_the_loss(
    places: dict[str, Path], tmp_path: Path
) -> None:
    train(mixed(places, tmp_path / "run", a=1.0, b=3.0), silent)
    lines = read_metrics(tmp_path / "run")
    names = ["a/shards", "b/shards"]
    for line in lines:
        logs = [line["sets"][name] for name in names]
        assert sum(log["share"] for log in logs) == pytest.approx(1.0)
        assert sum(log["share"] * log["loss"] for log in logs if log["loss"]) == pytest.approx(line["loss"], rel=1e-6)
    sets = open_sets([places[name] / "shards" for name in "ab"])
    taken = [
        lines[-1]["sets"][name]["epoch"] * len(sidecar) for name, sidecar in zip(names, sets.sidecars, strict=True)
    ]
    assert sum(taken) == pytest.approx(12)
    assert taken[1] > taken[0] > 0


def test_a_mixture_is_the_same_on_two_ranks(places: dict[str, Path], tmp_path: Path) -> None:
    configs = [mixed(places, tmp_path / name, a=1.0, b=1.0) for name in ("one", "two")]
    train(configs[0], silent)
    train_on_ranks(configs[1:], 2)
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["digest"] for line in one] == [line["digest"] for line in two]
    for a, b in zip(one, two, strict=True):
        for name, log in a["sets"].items():
            assert b["sets"][name] == pytest.approx(log, rel=1e-5)


def test_another_mixture_goes_on_from_where_each_set_was_when_told_so(places: dict[str, Path], tmp_path: Path) -> None:
    first = mixed(places, tmp_path / "run", a=1.0, b=1.0)
    train(first, silent)
    other = replace(mixed(places, tmp_path / "run", b=3.0, a=1.0), max_steps=5)
    with pytest.raises(TrainError, match=r"resume_changes: \[mixture\]"):
        train(other, silent)
    train(replace(other, resume_changes=("mixture",)), silent)
    _, after = read_phases(tmp_path / "run")
    assert (after.step, after.position) == (3, 12)
    names = {name: str(places[name] / "shards") for name in "ab"}
    assert [share.shards for share in after.sets] == [names["b"], names["a"]]
    assert sorted(share.cursor for share in after.sets) == [6, 6]
    assert [line["position"] for line in read_metrics(tmp_path / "run")] == [4, 8, 12, 16, 20]


def evaluated(places: dict[str, Path], output: Path, **changes: Any) -> TrainConfig:
    config = run_config(settings_of(places), output=str(output), **changes)
    return replace(config, eval=EvalConfig(shards=str(places["b"] / "shards"), every_steps=2))


def test_evaluation_is_logged_and_the_training_does_not_notice(places: dict[str, Path], tmp_path: Path) -> None:
    train(evaluated(places, tmp_path / "with"), silent)
    train(replace(evaluated(places, tmp_path / "without"), eval=None), silent)
    found, plain = read_metrics(tmp_path / "with"), read_metrics(tmp_path / "without")
    assert [line["eval_loss"] is not None for line in found] == [False, True, True]
    assert found[2]["eval_loss"] < found[1]["eval_loss"]
    assert found[1]["eval_loss_by_source"] == {"made.jsonl": pytest.approx(found[1]["eval_loss"])}
    of_eval = ("eval_loss", "eval_loss_by_source")
    assert [{k: v for k, v in line.items() if k not in of_eval} for line in found] == [
        {k: v for k, v in line.items() if k not in of_eval} for line in plain
    ]
    last = checkpoint_name(3)
    trained = read_tensors(tmp_path / "without" / last)
    for name, tensor in read_tensors(tmp_path / "with" / last).items():
        assert torch.equal(tensor, trained[name]), name


def test_the_best_checkpoint_outlives_the_limit(places: dict[str, Path], tmp_path: Path) -> None:
    """With a learning rate that ruins the model, the first checkpoint stays the best."""
    config = evaluated(places, tmp_path / "run", max_steps=4, save_steps=1, optim__lr=10.0, optim__warmup_steps=3)
    config = replace(config, metric_for_best_model="eval_loss", save_total_limit=1)
    train(config, silent)
    lines = read_metrics(tmp_path / "run")
    losses = {line["step"]: line["eval_loss"] for line in lines}
    assert all(loss is not None for loss in losses.values())
    best = min(losses, key=lambda step: losses[step])
    assert best < 4
    found = json.loads((tmp_path / "run" / "best.json").read_text())
    assert (found["step"], found["value"]) == (best, losses[best])
    assert [path.name for path in list_checkpoints(tmp_path / "run")[0]] == [checkpoint_name(best), checkpoint_name(4)]


def test_sigterm_during_an_evaluation_saves_what_was_trained(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*arguments: Any, **options: Any) -> Evaluation | None:
        arguments[-1].asked.stop = 1
        return evaluate(*arguments, **options)

    monkeypatch.setattr("lmms.train.loop.evaluate", ended)
    config = evaluated(places, tmp_path / "run", max_steps=9, save_steps=100)
    config = replace(config, metric_for_best_model="eval_loss")
    events: list[Any] = []
    assert train(config, events.append) is False
    step = config.eval.every_steps if config.eval else 0
    assert [path.name for path in list_checkpoints(tmp_path / "run")[0]] == [checkpoint_name(step)]
    assert f"stopped by SIGTERM after step {step}; the same command goes on from there" in events
    assert read_metrics(tmp_path / "run")[-1]["eval_loss"] is None


def running(config: TrainConfig, file: Path) -> subprocess.Popen[str]:
    """`lmms train` in a process of its own that has logged its first step."""
    file.write_text(to_yaml(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "lmms.cli", "train", "--config", file], stdout=subprocess.PIPE, text=True
    )
    log = Path(config.output) / METRICS_NAME
    deadline = time.monotonic() + GUARD_S
    while not (log.exists() and log.read_bytes().count(b"\n")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_sigterm_saves_and_stops_and_the_same_command_goes_on(places: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(settings_of(places), output=str(tmp_path / "run"), max_steps=2000, save_steps=5000)
    process = running(config, tmp_path / "run.yaml")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=GUARD_S)
    assert process.returncode == 143
    (saved,) = list_checkpoints(tmp_path / "run")[0]
    step = int(saved.name.removeprefix("step-"))
    assert 0 < step < 2000
    assert f"stopped by SIGTERM after step {step}; the same command goes on from there" in out.splitlines()
    assert read_metrics(tmp_path / "run")[-1]["step"] == step
    events: list[Any] = []
    train(replace(config, max_steps=step + 1), events.append)
    assert f"resumed from {saved} at step {step}" in events


def test_sigusr1_before_the_first_step_waits_for_the_run_to_listen(places: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(settings_of(places), output=str(tmp_path / "run"), max_steps=3, save_steps=5000)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "lmms.cli", "train", "--config", tmp_path / "run.yaml", "--nproc", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    while process.poll() is None and not list_checkpoints(tmp_path / "run")[0]:
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
    process.communicate(timeout=GUARD_S)
    assert process.returncode == 0
    assert list_checkpoints(tmp_path / "run")[0][0].name == checkpoint_name(1)


def test_ranks_have_their_grace_time_under_the_launcher(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that takes longer than the launcher's own patience, which is set to a second."""
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "1")
    config = run_config(settings_of(places), output=str(tmp_path / "run"), max_steps=9, data__global_packs=100)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "lmms.cli", "train", "--config", tmp_path / "run.yaml", "--nproc", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / METRICS_NAME).exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, _ = process.communicate(timeout=GUARD_S)
    assert time.monotonic() - began > 1.5, out
    assert process.returncode == 143, out
    assert [path.name for path in list_checkpoints(tmp_path / "run")[0]] == [checkpoint_name(1)]


def test_sigusr1_saves_and_the_run_goes_on(places: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(settings_of(places), output=str(tmp_path / "run"), max_steps=2000, save_steps=5000)
    process = running(config, tmp_path / "run.yaml")
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + GUARD_S
    while not list_checkpoints(tmp_path / "run")[0]:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (saved,) = list_checkpoints(tmp_path / "run")[0]
    lines = (tmp_path / "run" / METRICS_NAME).read_bytes().count(b"\n")
    while (tmp_path / "run" / METRICS_NAME).read_bytes().count(b"\n") < lines + 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.kill()
    process.communicate()
    assert list_checkpoints(tmp_path / "run")[0] == [saved]


def test_a_set_stands_in_a_mixture_once(places: dict[str, Path], tmp_path: Path) -> None:
    config = mixed(places, tmp_path / "run", a=1.0)
    twice = replace(config, data=replace(config.data, mixture=config.data.mixture * 2))
    with pytest.raises(ConfigError, match=r"the shards .*/a/shards are named twice"):
        train(twice, silent)


def test_what_may_surprise_is_said_before_the_first_step(places: dict[str, Path], tmp_path: Path) -> None:
    config = run_config(settings_of(places), output=str(tmp_path), data__global_packs=6, data__micro_packs=4)
    config = replace(config, max_steps=1, data=replace(config.data, group_packs=4))
    events: list[Any] = []
    train(config, events.append)
    assert without_waits(events)[:2] == ["weights: random numbers of seed 0", "started at step 0"]
    said = "\n".join(event for event in events if isinstance(event, str))
    assert "an epoch has 5 packs, fewer than data.global_packs (6)" in said
    assert "no multiple of 1 rank x 4 packs a pass: in the last pass of each step 2 packs count" in said
    assert "no multiple of data.group_packs (4)" in said
