"""deterministic: the same run twice gives the same bits, and what cannot be so is an error."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor
from torch.nn.attention import varlen
from transformers import AttentionInterface

from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.kernels import KernelsConfig
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.model import attention
from lmms.train.model.attention import ATTENTION_NAMES
from lmms.train.model.deterministic import deterministic, deterministic_kernels, refuse_cudnn
from lmms.train.model.kernels import Kernels
from lmms.train.run import train
from tests.kit.runs import read_metrics, read_tensors, run_config, silent, train_on_ranks, write_run

NEEDED = {"model.path": "m", "data.shards": "s", "output": "o", "max_steps": 1}
VARLEN = Kernels(attention="varlen", liger=False, compile=False)
GPU = torch.device("cuda", 0)


def some_config(**changes: Any) -> TrainConfig:
    return load_config(TrainConfig, None, values={**NEEDED, "deterministic": True, "device": "cpu", **changes})


def assert_same_bits(one: Path, two: Path) -> None:
    assert len(read_metrics(one)) == 3
    assert read_metrics(one) == read_metrics(two)
    ours, theirs = (read_tensors(output / checkpoint_name(3)) for output in (one, two))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_two_runs_are_the_same_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with loaders in processes; and in each call of attention torch's switch is on, not only to warn."""
    settings = write_run(tmp_path, "qwen3_vl") | {"deterministic": True, "data.workers": 2}
    name, states = ATTENTION_NAMES["sdpa"], set()
    attend = AttentionInterface._global_mapping[name]

    def watched(*args: Any, **kwargs: Any) -> Any:
        states.add(
            (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
        )
        return attend(*args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, name, watched)
    for output in ("one", "two"):
        train(run_config(settings, output=str(tmp_path / output)), silent)
    assert states == {(True, False)}
    assert not torch.are_deterministic_algorithms_enabled()
    assert_same_bits(tmp_path / "one", tmp_path / "two")


def test_two_runs_on_two_ranks_are_the_same_to_the_bit(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen2_5_vl") | {"deterministic": True, "data.micro_packs": 2}
    train_on_ranks([run_config(settings, output=str(tmp_path / output)) for output in ("one", "two")], 2)
    assert_same_bits(tmp_path / "one", tmp_path / "two")


def test_an_operation_without_a_deterministic_way_is_an_error_that_names_the_setting() -> None:
    values = torch.zeros(3)
    message = r"^deterministic is true, but put_.* does not have a deterministic implementation; set deterministic: fal"
    with pytest.raises(ConfigError, match=message), deterministic(some_config()):
        values.put_(torch.tensor([1, 1]), torch.ones(2))
    with deterministic(some_config(deterministic=False)):
        values.put_(torch.tensor([1, 1]), torch.ones(2))
    with pytest.raises(RuntimeError, match=r"^another"), deterministic(some_config()):
        raise RuntimeError("another")


def test_every_switch_is_set_and_set_back() -> None:
    def switches() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, inductor.deterministic

    before = switches()
    with deterministic(some_config(**{"kernels.compile": True})):
        assert switches() == (True, True, True)
        assert not torch.backends.cudnn.benchmark
    assert switches() == before == (False, False, False)


def test_libraries_find_what_they_read_when_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "^NVLS"}
    for name in wanted:
        # So that it is taken back after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with deterministic(some_config()):
        assert not wanted.keys() & os.environ.keys()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with deterministic(some_config(device="auto")):
        assert {name: os.environ[name] for name in wanted} == wanted
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with deterministic(some_config(device="auto")):
        pass
    monkeypatch.setenv("NCCL_ALGO", "NVLS")
    message = r"NCCL_ALGO is 'NVLS' in the environment, expected one of .NVLS, Ring, .*; unset it"
    with pytest.raises(ConfigError, match=message), deterministic(some_config(device="auto")):
        pass
    monkeypatch.delenv("NCCL_ALGO")
    message = "CUDA has started in this process without NCCL_ALGO; set it to .NVLS"
    with pytest.raises(ConfigError, match=message), deterministic(some_config(device="auto")):
        pass


@pytest.mark.parametrize("wanted", [True, False])
def test_flash_attn_2_is_told(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    package, told = ModuleType("flash_attn"), []

    def flash_attn_varlen_func(query: Tensor, *args: Any, deterministic: bool, **kwargs: Any) -> Tensor:
        told.append(deterministic)
        return query

    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    part = torch.zeros(2, 1, 4)
    with deterministic(some_config(deterministic=wanted)):
        attention._flash_attn_2(part, part, part, attention.Documents(torch.tensor([0, 2]), 2, 1.0, True))
    assert told == [wanted]


def test_liger_is_off_and_asked_for_an_error() -> None:
    assert deterministic_kernels(some_config()).liger == "off"
    assert deterministic_kernels(some_config(deterministic=False)) == KernelsConfig()
    with pytest.raises(ConfigError, match=r"deterministic is true and kernels\.liger on.*set kernels\.liger: auto, or"):
        some_config(**{"kernels.liger": "on"})


def test_attention_on_cudnn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch goes there by itself on some GPUs, and asks this function whether it should."""
    monkeypatch.setattr(varlen, "_should_use_cudnn", lambda index: index == 0)
    message = r"deterministic is true, but attention varlen runs on cuDNN here .*set kernels\.attention: flash-attn-2,"
    with pytest.raises(ConfigError, match=message):
        refuse_cudnn(some_config(), VARLEN, GPU)
    for config, kernels, device in (
        (some_config(deterministic=False), VARLEN, GPU),
        (some_config(), replace(VARLEN, attention="flash-attn-3"), GPU),
        (some_config(), VARLEN, torch.device("cuda", 1)),
        (some_config(), VARLEN, torch.device("cpu")),
    ):
        refuse_cudnn(config, kernels, device)
