"""One step: which packs go where, the denominator, clipping, and what is not finite."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lmms.configs.contract import Pack
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.manifest import Dataset, open_dataset
from lmms.configs.model_folder import ModelFolder
from lmms.configs.train import OptimConfig, Part
from lmms.train.batch import Batch
from lmms.train.checkpoint import tensors_of
from lmms.train.loader import batches
from lmms.train.model import TrainModel, blocks, build_model, init_random, materialize
from lmms.train.optim import freeze, make_optimizer, trained_parts
from lmms.train.order import Order
from lmms.train.parallel import World, shard_model, start_world, stop_world
from lmms.train.step import StepPlan, StepResult, plan_steps, take_step
from lmms.train.stream import read_sidecar
from tests.train.helpers import FIRST_SPECIAL, tiny_config, tiny_recipe
from tests.train.runs import write_model_folder
from tests.train.shards import make_pack, write_shards

FAMILY = "qwen2_5_vl"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return write_model_folder(tmp_path_factory.mktemp("model"), FAMILY)


@pytest.fixture(scope="module")
def packs(model_folder: ModelFolder) -> list[Pack]:
    """Six packs of two conversations; the first conversations of packs 0 and 3 show pictures."""
    rng = np.random.default_rng(3)
    return [make_pack(rng, [9, 7 + i], FIRST_SPECIAL, 2 * int(i % 3 == 0), model_folder) for i in range(6)]


@pytest.fixture(scope="module")
def dataset(packs: list[Pack], model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return open_dataset(write_shards(tmp_path_factory.mktemp("data") / "shards", packs, model_folder, 512))


def plans_of(dataset: Dataset, global_packs: int, steps: int = 1, rank: int = 0, ranks: int = 1) -> list[StepPlan]:
    order = Order(num_packs=6, seed=0, global_packs=global_packs)
    return list(islice(plan_steps(order, read_sidecar(dataset), rank, ranks, 1, 0, 0), steps))


def sharded_model(world: World, frozen: Sequence[Part] = ()) -> TrainModel:
    model = build_model(tiny_config(FAMILY), "full")
    freeze(model, frozen)
    shard_model(model, blocks(model), world, torch.float32)
    materialize(model, world.device)
    init_random(model, 0)
    return model


def loaded(dataset: Dataset, plan: StepPlan, on_bad_media: str = "stop") -> Iterator[Batch]:
    return batches(dataset, read_sidecar(dataset), tiny_recipe(FAMILY, on_bad_media), plan.micro_steps, 0)


def one_step(
    world: World, dataset: Dataset, plan: StepPlan, model: nn.Module, max_grad_norm: float = 1e9, mask: bool = False
) -> StepResult:
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, eps=1e-3))
    loader = loaded(dataset, plan, "mask" if mask else "stop")
    return take_step(model, optimizer, trained_parts(model), plan, loader, world, 0.1, max_grad_norm)


def test_ranks_share_the_packs_of_a_step_and_agree_on_all_else(dataset: Dataset) -> None:
    alone = plans_of(dataset, 4, steps=3)
    ranks = [plans_of(dataset, 4, steps=3, rank=rank, ranks=2) for rank in range(2)]
    assert [plan.step for plan in alone] == [1, 2, 3]
    assert [plan.position for plan in alone] == [0, 4, 8]
    for whole, first, second in zip(alone, *ranks, strict=True):
        packs = whole.packs.tolist()
        assert [i for (i,) in first.micro_steps] == packs[0::2]
        assert [i for (i,) in second.micro_steps] == packs[1::2]
        assert whole.has_images == [i % 3 == 0 for i in packs]
        assert first.has_images == second.has_images == [a or b for a, b in np.reshape(whole.has_images, (2, 2))]
        shared = [(p.weight, p.tokens, p.target_tokens) for p in (whole, first, second)]
        assert len(set(shared)) == 1


def test_the_denominator_is_the_weight_of_all_targets(dataset: Dataset, packs: list[Pack]) -> None:
    (plan,) = plans_of(dataset, 4)
    weights = [p.target_weights.astype(float) @ np.diff(p.targets)[:, 0] for p in (packs[i] for i in plan.packs)]
    assert plan.weight == pytest.approx(sum(weights))
    assert plan.target_tokens == sum(int(np.diff(packs[i].targets).sum()) for i in plan.packs)


def test_a_run_goes_on_from_a_position_with_steps_of_another_size(dataset: Dataset) -> None:
    order = Order(num_packs=6, seed=0, global_packs=4)
    before = list(islice(plan_steps(order, read_sidecar(dataset), 0, 1, 1, 0, 0), 3))
    after = list(islice(plan_steps(replace(order, global_packs=2), read_sidecar(dataset), 0, 1, 1, 1, 4), 4))
    assert [plan.step for plan in after] == [2, 3, 4, 5]
    assert np.concatenate([p.packs for p in after]).tolist() == np.concatenate([p.packs for p in before[1:]]).tolist()


def test_a_step_that_ranks_cannot_share_evenly_is_refused(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="global_packs is 4, not a multiple of 3"):
        plans_of(dataset, 4, ranks=3)


def test_loss_and_norms_are_those_of_plain_backward(world: World, dataset: Dataset) -> None:
    (plan,) = plans_of(dataset, 6)
    model = build_model(tiny_config(FAMILY), "none")
    materialize(model, world.device)
    init_random(model, 0)
    losses = [model(batch, True) for batch in loaded(dataset, plan)]
    (sum(losses) / plan.weight).backward()
    result = one_step(world, dataset, plan, sharded_model(world))
    assert result.loss == pytest.approx(float(sum(losses).detach()) / plan.weight, rel=1e-5)
    for part, parameters in trained_parts(model).items():
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        assert result.part_norms[part] == pytest.approx(float(norm), rel=1e-5)
    assert result.grad_norm == pytest.approx(sum(n**2 for n in result.part_norms.values()) ** 0.5)


def test_gradients_are_clipped_to_the_global_norm_which_is_reported_unclipped(world: World, dataset: Dataset) -> None:
    (plan,) = plans_of(dataset, 2)
    free, clipped = sharded_model(world), sharded_model(world)
    optimizers = [make_optimizer(model, OptimConfig(lr=0.1)) for model in (free, clipped)]
    norms = [
        take_step(model, optimizer, trained_parts(model), plan, loaded(dataset, plan), world, 0.1, limit).grad_norm
        for model, optimizer, limit in zip((free, clipped), optimizers, (1e9, 0.5), strict=True)
    ]
    assert norms[0] == norms[1] > 0.5
    averages = [tensors_of(model, optimizer) for model, optimizer in zip((free, clipped), optimizers, strict=True)]
    for name, average in averages[0].items():
        if name.endswith("exp_avg"):
            torch.testing.assert_close(averages[1][name], average * (0.5 / norms[0]), rtol=1e-4, atol=1e-9)


def test_a_text_pass_without_gradients_leaves_no_old_weights_behind(world: World, dataset: Dataset) -> None:
    """With the vision tower alone in training, a pass without images has no backward, which else frees weights."""
    plan = replace(plans_of(dataset, 2)[0], packs=np.array([0, 1]), micro_steps=[[0], [1]], has_images=[True, False])
    plain = build_model(tiny_config(FAMILY), "none")
    materialize(plain, world.device)
    init_random(plain, 0)
    sharded = sharded_model(world, ["llm", "aligner"])
    freeze(plain, ["llm", "aligner"])
    optimizers = [make_optimizer(model, OptimConfig(lr=0.1, eps=1e-3)) for model in (plain, sharded)]
    for _ in range(3):
        losses = [plain(batch, has) for batch, has in zip(loaded(dataset, plan), plan.has_images, strict=True)]
        (losses[0] / plan.weight).backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        result = take_step(sharded, optimizers[1], trained_parts(sharded), plan, loaded(dataset, plan), world, 0.1, 1e9)
        assert result.loss == pytest.approx(float(sum(losses).detach()) / plan.weight, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_before_the_weights_and_names_step_and_packs(
    world: World, dataset: Dataset, value: float
) -> None:
    (plan,) = plans_of(dataset, 4)
    model = sharded_model(world)
    with torch.no_grad():
        # One word's embedding: only the packs that hold it are to blame.
        embeddings = model.hf.get_input_embeddings().weight.to_local()
        word = int(next(loaded(dataset, plan)).input_ids[0, -1])
        embeddings[word] = value
        before = [parameter.to_local().clone() for parameter in model.parameters()]
    blamed = [
        ids for ids, batch in zip(plan.micro_steps, loaded(dataset, plan), strict=True) if word in batch.input_ids
    ]
    expected = str(sorted(i for ids in blamed for i in ids))
    with pytest.raises(TrainError, match=r"step 1: loss sum is nan.*packs ") as raised:
        one_step(world, dataset, plan, model)
    assert f"packs {expected};" in str(raised.value)
    for parameter, kept in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.to_local(), kept, rtol=0, atol=0, equal_nan=True)


def damaged(pack: Pack) -> Pack:
    """The same pack with pictures that cannot be decoded."""
    return replace(pack, media_bytes=b"\0" * len(pack.media_bytes))


def second_alone(pack: Pack) -> Pack:
    """A pack of the second conversation alone."""
    start = int(pack.cu_seqlens[1])
    return Pack(
        input_ids=pack.input_ids[start:],
        cu_seqlens=pack.cu_seqlens[1:] - start,
        targets=pack.targets[1:] - start,
        target_weights=pack.target_weights[1:],
        samples=pack.samples[1:],
        media=(),
        media_bytes=b"",
    )


def test_a_masked_conversation_leaves_the_step_as_if_it_were_not_there(
    world: World, packs: list[Pack], model_folder: ModelFolder, tmp_path: Path
) -> None:
    bad = open_dataset(write_shards(tmp_path / "bad", [damaged(p) if p.media else p for p in packs], model_folder, 512))
    rest = [second_alone(pack) if pack.media else pack for pack in packs]
    without = open_dataset(write_shards(tmp_path / "without", rest, model_folder, 512))
    found = one_step(world, bad, plans_of(bad, 6)[0], sharded_model(world), mask=True)
    expected = one_step(world, without, plans_of(without, 6)[0], sharded_model(world))
    assert len(found.masked) == 2
    assert all("cannot be decoded" in sentence for sentence in found.masked)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.part_norms["llm"] == pytest.approx(expected.part_norms["llm"], rel=1e-5)


def test_a_step_of_which_nothing_is_left_stops(world: World, model_folder: ModelFolder, tmp_path: Path) -> None:
    pack = damaged(make_pack(np.random.default_rng(0), [9], FIRST_SPECIAL, 1, model_folder))
    bad = open_dataset(write_shards(tmp_path / "bad", [pack], model_folder, 512))
    order = Order(num_packs=1, seed=0, global_packs=1)
    plan = next(plan_steps(order, read_sidecar(bad), 0, 1, 1, 0, 0))
    with pytest.raises(TrainError, match="step 1: every image failed"):
        one_step(world, bad, plan, sharded_model(world), mask=True)
