"""Copies of sharded weights (parallel.replicate), weights that stay gathered (reshard), and weights in main memory
(offload) change nothing of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lmms.configs.errors import ConfigError
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.parallel.sharding import local_of, shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from lmms.train.run import train
from tests.kit.ranks import free_port, on_ranks
from tests.kit.runs import (
    assert_same_steps,
    assert_same_tensors,
    read_metrics,
    read_tensors,
    run_config,
    silent,
    train_as_rank,
    write_run,
)

STEPS = 3

CASES: dict[str, dict[str, Any]] = {
    "text": {"family": "qwen3", "tied": True},
    "images": {"family": "qwen3_vl", "eval.every_steps": 2},
    "vision alone": {"family": "qwen3_vl", "train": {"llm": "frozen", "aligner": "frozen"}, "data.micro_packs": 1},
}

LAYOUTS: dict[str, dict[str, Any]] = {
    "two copies": {"parallel.replicate": 2},
    "kept gathered": {"parallel.reshard": False},
    "four copies, kept gathered": {"parallel.replicate": 4, "parallel.reshard": False},
    "two copies, shared packs": {"parallel.replicate": 2, "parallel.sequence": 2},
    "two copies, in main memory": {"parallel.replicate": 2, "parallel.offload": True},
}
"""On four ranks."""
ON_TWO: dict[str, dict[str, Any]] = {
    "a copy a rank": {"parallel.replicate": 2},
    "in main memory, kept gathered": {"parallel.reshard": False, "parallel.offload": True},
}
EVERY = {**LAYOUTS, **ON_TWO}

MESHES = {
    "two copies": [2, 2],
    "kept gathered": [4],
    "four copies, kept gathered": [4, 1],
    "two copies, shared packs": [2, 2],
    "two copies, in main memory": [2, 2],
    "a copy a rank": [2, 1],
    "in main memory, kept gathered": [2],
}
UNITS = "units.json"
"""In an output: of each call of fully_shard on rank 0, the sizes of its mesh, the name of its offload policy, and its
reshard_after_forward."""


def train_layouts(rank: int, ranks: int, configs: Sequence[TrainConfig], ports: Sequence[int]) -> None:
    """runs.train_as_rank, where offload is taken on a CPU: FSDP2 walks the same way, on which nothing moves.
    What it was called with is written down."""
    for config, port in zip(configs, ports, strict=True):
        with (
            patch("lmms.train.parallel.world.check_offload"),
            patch("lmms.train.parallel.world.fully_shard", wraps=fully_shard) as f,
        ):
            train_as_rank(rank, ranks, [config], [port])
        if rank == 0:
            asked = [call.kwargs for call in f.call_args_list]
            units = [(a["mesh"].shape, type(a["offload_policy"]).__name__, a["reshard_after_forward"]) for a in asked]
            (Path(config.output) / UNITS).write_text(json.dumps(units))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path]]:
    """Case -> its settings, and the folder of an output for each layout, `one` for one rank, `one on four` for two
    copies in main memory that go on from its second step."""
    cases, on_four, on_two = {}, [], []
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("run")
        settings = write_run(folder, case["family"], tied=case.get("tied", False))
        settings |= {"max_steps": STEPS, "save_steps": 2} | {k: case[k] for k in case if k not in ("family", "tied")}
        if "eval.every_steps" in case:
            settings["eval.shards"] = settings["data.shards"]
        cases[name] = (settings, folder)
        train(run_config(settings, output=str(folder / "one")), silent)
        resumed = {"output": str(folder / "one on four"), "resume": str(folder / "one" / checkpoint_name(2))}
        with patch("lmms.configs.settings.train.check_offload"):
            on_four += [run_config({**settings, **LAYOUTS[key]}, output=str(folder / key)) for key in LAYOUTS]
            on_two += [run_config({**settings, **ON_TWO[key]}, output=str(folder / key)) for key in ON_TWO]
            on_four.append(run_config({**settings, **LAYOUTS["two copies, in main memory"], **resumed}))
    for ranks, configs in ((4, on_four), (2, on_two)):
        on_ranks(train_layouts, ranks, configs, [free_port() for _ in configs])
    return cases


def assert_same_metrics(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    by_source = [[line.pop("eval_loss_by_source") for line in lines] for lines in (found, expected)]
    assert_same_steps(found, expected)
    for ours, theirs in zip(*by_source, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("layout", EVERY)
def test_the_settings_reach_what_shards(runs: dict[str, tuple[dict[str, Any], Path]], layout: str) -> None:
    """The last block is never resharded, nor is the root, which comes after it."""
    units = json.loads((runs["images"][1] / layout / UNITS).read_text())
    settings = EVERY[layout]
    policy = "CPUOffloadPolicy" if settings.get("parallel.offload", False) else "OffloadPolicy"
    reshard = [settings.get("parallel.reshard", True)] * (len(units) - 2) + [False, False]
    assert len(units) > 2
    assert units == [[MESHES[layout], policy, again] for again in reshard]


@pytest.mark.parametrize("layout", EVERY)
@pytest.mark.parametrize("case", CASES)
def test_losses_norms_and_weights_are_those_of_one_rank(
    runs: dict[str, tuple[dict[str, Any], Path]], case: str, layout: str
) -> None:
    one, ranks = runs[case][1] / "one", runs[case][1] / layout
    assert len(read_metrics(ranks)) == STEPS
    assert_same_metrics(read_metrics(ranks), read_metrics(one))
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS)) for output in (ranks, one)))


@pytest.mark.parametrize("case", CASES)
def test_copies_go_on_from_one_rank(runs: dict[str, tuple[dict[str, Any], Path]], case: str) -> None:
    one, four = runs[case][1] / "one", runs[case][1] / "one on four"
    assert_same_metrics(read_metrics(four), read_metrics(one)[-1:])
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS)) for output in (four, one)))


@pytest.mark.parametrize("layout", EVERY)
def test_one_rank_goes_on_from_any(runs: dict[str, tuple[dict[str, Any], Path]], tmp_path: Path, layout: str) -> None:
    settings, folder = runs["images"]
    copies = folder / layout
    train(run_config(settings, output=str(tmp_path), resume=str(copies / checkpoint_name(2))), silent)
    assert_same_metrics(read_metrics(tmp_path), read_metrics(copies)[-1:])
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS)) for output in (tmp_path, copies)))


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
