"""What is refused before anything heavy is loaded."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lmms.configs.errors import ConfigError, DatasetError, LmmsError, ModelError, TrainError
from lmms.configs.load import to_yaml
from lmms.train.plan import checks
from lmms.train.plan.checks import check_run
from tests.kit.runs import run_config, write_run


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return write_run(tmp_path, "qwen3")


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"data.shards": "nosuch"}, DatasetError, r"nosuch"),
        ({"model.path": "./nosuch"}, ModelError, r"model './nosuch' is neither a folder nor a hub id"),
        ({"model.init": "pretrained"}, ModelError, r"has no model\.safetensors or .*set model\.init: random"),
        ({"output": "/proc/version/run"}, TrainError, r"/proc/version is not a folder"),
        (
            {"train": {"vision": "frozen"}},
            ConfigError,
            r"train names 'vision', which this model does not have; it has llm",
        ),
        ({"optim.lr": {"aligner": 1e-3}}, ConfigError, r"optim\.lr names 'aligner', which this model does not have"),
        ({"resume": "step-00000009"}, TrainError, r"step-00000009 is not a complete checkpoint"),
    ],
)
def test_what_a_run_cannot_use_is_named_before_it_starts(
    settings: dict[str, Any], changes: dict[str, Any], kind: type[LmmsError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        check_run(run_config(settings | changes))
    check_run(run_config(settings))


@pytest.mark.parametrize("place", ["s3://bucket/shards", "dbfs:/Volumes/a/shards"])
def test_places_behind_a_url_are_left_to_the_run(
    settings: dict[str, Any], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(checks, "open_dataset", opened.append)
    check_run(run_config(settings | {"data.shards": place}))
    assert opened == []


@pytest.mark.parametrize(("rule", "bytes_each"), [("adamw", 12), ("adamw-8bit", 6)])
def test_a_disk_without_room_for_a_checkpoint_is_named(
    settings: dict[str, Any], rule: str, bytes_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {"a": torch.zeros(3, 5), "b": torch.zeros(1000, dtype=torch.bfloat16), "lm_head.weight": torch.zeros(9)}
    save_file(weights, Path(settings["model.path"]) / "model.safetensors")
    run = settings | {"optim.name": rule}
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: usage(1015 * bytes_each))
    check_run(run_config(run))
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda folder: usage(1015 * bytes_each - 1))
    with pytest.raises(TrainError, match=r"a checkpoint of this run has at least .* free; make room"):
        check_run(run_config(run))
    check_run(run_config(run | {"train": {"llm": "frozen", "default": "full"}}))


def test_a_board_whose_package_is_missing_is_named(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"log\.tensorboard is set, but the package tensorboard cannot be imported"):
        check_run(run_config(settings | {"log.tensorboard": True}))


def test_a_model_of_other_shards_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "qwen3_vl")
    with pytest.raises(ModelError, match="does not fit the shards"):
        check_run(run_config(settings | {"model.path": other["model.path"]}))


def test_the_command_says_so_without_loading_torch_and_leaves_no_folder(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """A torch that cannot be imported stands in its way: it must not be met."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("raise ImportError('torch was imported')")
    (tmp_path / "run.yaml").write_text(to_yaml(run_config(settings | {"data.shards": str(tmp_path / "nosuch")})))
    for more in ([], ["--nproc", "2"]):
        run = subprocess.run(
            [sys.executable, "-m", "lmms.cli", "train", "--config", str(tmp_path / "run.yaml"), *more],
            env={**os.environ, "PYTHONPATH": str(tmp_path / "broken")},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 1
        assert "nosuch" in run.stderr
        assert run.stderr.count("\n") == 1
        assert not Path(settings["output"]).exists()


@pytest.mark.parametrize(
    ("environment", "netrc", "known"),
    [
        ({}, None, False),
        ({"WANDB_API_KEY": "k"}, None, True),
        ({}, "machine api.wandb.ai login user password k", True),
        ({}, "machine other.org login user password k", False),
        ({"WANDB_BASE_URL": "https://wandb.home"}, "machine wandb.home login user password k", True),
        ({"WANDB_MODE": "offline"}, None, True),
    ],
)
def test_a_run_for_wandb_without_a_login_is_refused_before_it_starts(
    settings: dict[str, Any],
    environment: dict[str, str],
    netrc: str | None,
    known: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if netrc:
        (tmp_path / ".netrc").write_text(netrc)
    config = run_config(settings | {"log.wandb": "project"})
    if known:
        check_run(config)
    else:
        with pytest.raises(ConfigError, match=r"there is no login for wandb; run `wandb login`, set WANDB_API_KEY, or"):
            check_run(config)
