"""What stays gathered (parallel.reshard), weights in main memory (offload), and layouts that are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmms.configs.errors import ConfigError
from lmms.train.parallel.sharding import local_of, shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from tests.kit.ranks import free_port


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))


def gathered(model: nn.Module) -> list[bool]:
    """Of each layer, whether its weights are whole."""
    return [layer.weight.numel() == 64 and not hasattr(layer.weight, "to_local") for layer in model]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield start_world("cpu")
    stop_world()


@pytest.mark.parametrize(("reshard", "expected"), [(True, [False] * 3 + [True]), (False, [True] * 4)])
def test_what_stays_gathered_after_forward(world: World, reshard: bool, expected: list[bool]) -> None:
    model = layers()
    # With offload, which moves nothing on a CPU: one rank alone shards nothing else.
    shard_model(model, list(model), world, torch.float32, reshard, offload=True)
    model(torch.ones(2, 8)).sum().backward()
    assert gathered(model) == [False] * 4
    loss: Tensor = model(torch.ones(2, 8)).sum()
    assert gathered(model) == expected
    loss.backward()


def test_offload_computes_the_same(world: World) -> None:
    """On the CPU, where nothing moves: the way through FSDP2's offload is walked all the same, and alone it is not."""
    norms = []
    for offload in (False, True):
        model = layers()
        shard_model(model, list(model), world, torch.float32, True, offload)
        for _ in range(2):
            model(torch.ones(2, 8)).square().sum().backward()
        assert all(isinstance(parameter, DTensor) == offload for parameter in model.parameters())
        norms.append([float(local_of(p.grad).norm()) for p in model.parameters() if p.grad is not None])
    assert norms[0] == norms[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_offload_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="it is for GPUs"):
        start_world("auto", offload=True)


def test_ranks_that_are_no_multiple_of_the_copies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 6, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=r"parallel\.replicate is 4, but there are 6 ranks.*start 8 ranks, or .*\[1,"):
        start_world("cpu", replicate=4)
