"""deterministic: the same run twice gives the same bits, and what cannot be so is an error."""

import os
from pathlib import Path

import pytest
import torch

from lmms.configs.errors import ConfigError
from lmms.train.checkpoint import checkpoint_name
from lmms.train.deterministic import deterministic
from lmms.train.run import train
from tests.train.runs import read_metrics, read_tensors, run_config, write_run


def test_two_runs_with_two_loaders_are_the_same_to_the_bit(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3_vl") | {"deterministic": True, "data.workers": 2, "kernels.liger": "off"}
    asked = []
    for name in ("one", "two"):
        train(
            run_config(settings, output=str(tmp_path / name)),
            lambda event: asked.append(torch.are_deterministic_algorithms_enabled()),
        )
    assert set(asked) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    assert read_metrics(tmp_path / "one") == read_metrics(tmp_path / "two")
    one, two = (read_tensors(tmp_path / name / checkpoint_name(3)) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_an_operation_that_is_not_deterministic_is_an_error() -> None:
    values = torch.zeros(3)
    with deterministic(True), pytest.raises(RuntimeError, match="deterministic"):
        values.put_(torch.tensor([1, 1]), torch.ones(2))
    with deterministic(False):
        values.put_(torch.tensor([1, 1]), torch.ones(2))


def test_cublas_gets_the_workspace_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.backends.cudnn.deterministic
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    message = r"CUBLAS_WORKSPACE_CONFIG is ':0:0', expected one of :4096:8, :16:8"
    with pytest.raises(ConfigError, match=message), deterministic(True):
        pass
