"""Every optimizer over one, two and four ranks: the same bits of the same gradients, also through checkpoints.

So too over copies of sharded weights (parallel.replicate), which stay equal. Whole runs are in tests/train/same_run.
"""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

import lmms.train.optim.rules
from lmms.configs.errors import TrainError
from lmms.configs.settings.optim import OptimConfig, OptimName
from lmms.train.checkpoint.read import tensors_of
from lmms.train.model.build import blocks
from lmms.train.optim.groups import make_optimizer
from lmms.train.optim.rules import Updates
from lmms.train.optim.table import TRAINED_NAME
from lmms.train.parallel.sharding import local_of, shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from lmms.train.plan.dry_run import dry_run
from lmms.train.run import train
from tests.kit.broken_steps import poisoned, train_with
from tests.kit.model.models import tiny_model
from tests.kit.passes import batch_of, some_batch
from tests.kit.ranks import on_ranks
from tests.kit.runs import (
    read_metrics,
    run_config,
    silent,
    write_run,
)

NAMES: tuple[OptimName, ...] = get_args(OptimName)
SHAPES = [(100, 300), (7, 1000), (130, 40), (100, 300), (100, 300), (64, 64), (12, 5, 3, 40), (3, 2048), (33,)]
"""Rows that no number of ranks divides, fewer than ranks, of no whole blocks; three alike, which two ranks share."""
STEPS = 6

Tensors = dict[str, Tensor]


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in SHAPES])


def rule_of(name: OptimName, parameter: nn.Parameter) -> OptimName:
    fits = parameter.ndim == 2 if name == "muon" else parameter.ndim > 1
    return name if fits else "adamw"


def take_steps(world: World, name: OptimName, first: int, last: int, begin: Path | None, end: Path | None) -> Tensors:
    """Steps first to last with gradients that know nothing of ranks; the weights and states after them, whole."""
    torch.manual_seed(0)
    model = Weights()
    if world.size > 1:
        shard_model(model, [], world, torch.float32)
    shared = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.95}
    groups = [
        {"params": [p], "rule": rule_of(name, p), "stacked": 2 if len(p) == 130 else 1, **shared} for p in model.all
    ]
    # One group of all that are alike: Muon deals them out to the ranks together.
    groups[0]["params"] += groups.pop(4)["params"] + groups.pop(3)["params"]
    optimizer = Updates(groups)
    tensors = tensors_of(model, optimizer)
    if begin:
        load(tensors, checkpoint_id=begin)
    for step in range(first, last + 1):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.all:
            whole = torch.randn(parameter.shape, generator=generator) ** 3
            if isinstance(parameter, DTensor):
                whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
            parameter.grad = whole
        optimizer.step()
    if end:
        save(tensors, checkpoint_id=end)
    return {
        key: (value.full_tensor() if isinstance(value, DTensor) else value).clone() for key, value in tensors.items()
    }


def as_rank_of_two_copies(rank: int, ranks: int, folder: Path) -> None:
    world = start_world("cpu", replicate=2)
    found = {name: take_steps(world, name, 1, STEPS, None, None) for name in NAMES}
    if world.is_main:
        torch.save(found, folder / "two copies.pt")
    stop_world()


def as_rank(rank: int, ranks: int, folder: Path) -> None:
    world = start_world("cpu")
    for name in NAMES:
        half = folder / f"{name} after 2"
        found = {"straight": take_steps(world, name, 1, STEPS, None, None)}
        if ranks == 2:
            take_steps(world, name, 1, 2, None, half)
        else:
            found["resumed"] = take_steps(world, name, 5, STEPS, folder / f"{name} after 4", None)
        if world.is_main:
            torch.save(found, folder / f"{name} on {ranks}.pt")
    stop_world()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensors]:
    """`name on ranks`: after STEPS steps; 2 x 2: of four ranks with two copies. `name on 2, 1, 4`: what two began, one
    went on with, and four ended."""
    folder = tmp_path_factory.mktemp("updates")
    on_ranks(as_rank, 2, folder)
    world = start_world("cpu")
    every = {f"{name} on 1": take_steps(world, name, 1, STEPS, None, None) for name in NAMES}
    for name in NAMES:
        take_steps(world, name, 3, 4, folder / f"{name} after 2", folder / f"{name} after 4")
    stop_world()
    on_ranks(as_rank, 4, folder)
    on_ranks(as_rank_of_two_copies, 4, folder)
    copies = torch.load(folder / "two copies.pt")
    for name in NAMES:
        every[f"{name} on 2 x 2"] = copies[name]
        for ranks in (2, 4):
            every[f"{name} on {ranks}"] = torch.load(folder / f"{name} on {ranks}.pt")["straight"]
        every[f"{name} on 2, 1, 4"] = torch.load(folder / f"{name} on 4.pt")["resumed"]
    return every


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", ["2", "4", "2 x 2", "2, 1, 4"])
def test_any_ranks_make_the_same_bits_of_the_same_gradients(
    found: dict[str, Tensors], name: OptimName, ranks: str
) -> None:
    one, other = found[f"{name} on 1"], found[f"{name} on {ranks}"]
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        # The CPU's own kernels (of fp32 averages, of Muon's sums) round the end of a tensor otherwise than its middle.
        exact = name in ("adamw-bf16", "adamw-8bit") and f".{len(SHAPES) - 1}" not in key
        torch.testing.assert_close(other[key], tensor, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-8, msg=key)
    kinds = {key.rpartition(".")[2] for key in one if key.startswith("optimizer")}
    assert {"adamw-8bit": "exp_avg_codes", "muon": "momentum"}.get(name, "exp_avg") in kinds


def train_copies(rank: int, ranks: int, folder: Path) -> None:
    """Three steps of a model on other packs on each rank; counts what is not the same bits in both copies."""
    lmms.train.optim.rules.SMALL = 0
    world, batches = start_world("cpu", replicate=2), [some_batch("qwen3_vl"), batch_of("qwen3_vl")]
    differing: dict[str, list[str]] = {}
    for name in NAMES:
        model = tiny_model("qwen3_vl")
        shard_model(model, blocks(model), world, torch.float32)
        optimizer = make_optimizer(model, OptimConfig(name=name, lr={"default": 1e-2}))
        before = local_of(model.hf.lm_head.weight.detach()).clone()
        for step in range(3):
            model(batches[(rank + step) % 2], True)[0].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not torch.equal(local_of(model.hf.lm_head.weight.detach()), before)
        differing[name] = []
        for key, tensor in tensors_of(model, optimizer).items():
            own = local_of(tensor.detach()).contiguous()
            others = [torch.empty_like(own) for _ in range(2)]
            dist.all_gather(others, own, group=world.mesh.get_group("replicate"))
            if not torch.equal(*others):
                differing[name].append(key)
    (folder / f"{rank}.json").write_text(json.dumps(differing))
    stop_world()


def test_copies_of_weights_and_averages_stay_the_same_bits(tmp_path: Path) -> None:
    on_ranks(train_copies, 4, tmp_path)
    for rank in range(4):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == {name: [] for name in NAMES}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of a Qwen3-VL that is large enough for averages in few bits."""
    folder = tmp_path_factory.mktemp("run")
    settings = write_run(folder, "qwen3_vl")
    path = folder / "model" / "config.json"
    config = json.loads(path.read_text())
    config["text_config"] |= {"hidden_size": 64, "intermediate_size": 300}
    config["vision_config"] |= {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 160}
    path.write_text(json.dumps(config))
    return settings | {"save_steps": 2}


def run_of(settings: dict[str, Any], name: OptimName, output: Path, **changes: Any) -> Any:
    return run_config(settings | {"optim.name": name}, output=str(output), **changes)


@pytest.fixture(scope="module")
def outputs(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an output for each optimizer but AdamW."""
    folder = tmp_path_factory.mktemp("outputs")
    for name in NAMES[1:]:
        train(run_of(settings, name, folder / name), silent)
    return folder


@pytest.mark.parametrize("name", NAMES[1:])
def test_the_table_says_what_moves_what(outputs: Path, name: OptimName) -> None:
    rows = json.loads((outputs / name / TRAINED_NAME).read_text())
    of_llm = {row["part"]: row["rule"] for row in rows}["llm"]
    assert of_llm.keys() == {"adamw", name}
    assert sum(of_llm.values()) == sum(row["trained"] for row in rows if row["part"] == "llm")


def test_going_on_with_another_optimizer_is_refused(settings: dict[str, Any], outputs: Path) -> None:
    config = run_of(settings, "adamw-8bit", outputs / "muon")
    expected = r"was trained with optim.name muon, this run has adamw-8bit: .* go on with the same optim.name"
    with pytest.raises(TrainError, match=expected):
        train(config, silent)
    with pytest.raises(TrainError, match=expected):
        dry_run(config, 1, [])


def test_its_weights_alone_are_a_start_for_another(settings: dict[str, Any], outputs: Path, tmp_path: Path) -> None:
    begun = str(outputs / "muon")
    train(run_of(settings, "adamw-8bit", tmp_path, model__init_from=begun, max_steps=1), silent)
    (line,) = read_metrics(tmp_path)
    assert line["loss"] < read_metrics(begun)[0]["loss"]


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_step_that_is_not_finite_touches_no_state(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: OptimName
) -> None:
    config = run_of(settings, name, tmp_path)
    train_with(monkeypatch, poisoned({2}), config)
    assert [line["skipped"] for line in read_metrics(tmp_path)] == [0, 1, 0]


def test_the_dry_run_counts_the_states_of_the_optimizer(settings: dict[str, Any], tmp_path: Path) -> None:
    found = {name: dry_run(run_of(settings, name, tmp_path), 2, []) for name in NAMES}
    fp32, bf16, eight_bit, muon = (max(rank["optimizer"] for rank in found[name].memory) for name in NAMES)
    assert 0.4 < bf16 / fp32 < 0.6
    assert 0.2 < eight_bit / fp32 < 0.4
    assert 0.5 < muon / fp32 < 0.7
    assert [found[name].optimizer for name in NAMES] == list(NAMES)
