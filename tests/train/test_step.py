"""One step: which packs go where, the denominator, clipping, and what is not finite."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lmms.configs.by_part import Part
from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import TrainError
from lmms.configs.settings.optim import OptimConfig
from lmms.train.batch.batch import Batch
from lmms.train.batch.loader import batches
from lmms.train.checkpoint.read import tensors_of
from lmms.train.data.mixture import Phase, share_turns
from lmms.train.data.sets import Sets, make_order, open_sets, packs_digest
from lmms.train.data.shards import PackReader, Request
from lmms.train.data.steps import StepPlan, pack_names, plan_steps
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.optim.groups import make_optimizer, set_trained, trained_parts
from lmms.train.parallel.sharding import local_of, shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from lmms.train.step import Learner, StepResult, take_step
from lmms.train.watch.signals import Asked
from lmms.train.watch.watch import Watch, unwatched
from tests.kit.model.models import FIRST_SPECIAL, frozen, tiny_config, tiny_recipe
from tests.kit.runs import write_model_folder
from tests.kit.shards import make_pack, write_shards

FAMILY = "qwen2_5_vl"
COST = ModelCost(token=1, target=0, squared_length=0, patch=0, squared_image=0, squared_window=0, window=0)


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
def sets(packs: list[Pack], model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return open_sets([write_shards(tmp_path_factory.mktemp("data") / "shards", packs, model_folder, 512)])


def plan_of(shards: Sets, global_packs: int) -> StepPlan:
    order = make_order(shards, Phase(), COST, 0, global_packs)
    return next(plan_steps(order, shards))


def sharded_model(world: World, parts: Sequence[Part] = ()) -> TrainModel:
    model = build_model(tiny_config(FAMILY), "full")
    set_trained(model, frozen(*parts))
    shard_model(model, blocks(model), world, torch.float32)
    materialize(model, world.device)
    init_random(model, 0)
    return model


def loaded(sets: Sets, plan: StepPlan, on_bad_media: str = "stop") -> Iterator[Batch]:
    return batches(PackReader(sets.datasets), tiny_recipe(FAMILY, on_bad_media), plan.passes, 0, 60.0)


def stepped(
    world: World,
    sets: Sets,
    plan: StepPlan,
    model: TrainModel,
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float = 1e9,
    on_bad_media: str = "stop",
) -> StepResult:
    learner = learner_of(world, model, optimizer, max_grad_norm)
    return take_step(learner, plan, loaded(sets, plan, on_bad_media), 1.0, unwatched())


def learner_of(
    world: World, model: TrainModel, optimizer: torch.optim.Optimizer | None = None, max_grad_norm: float = 1.0
) -> Learner:
    optimizer = optimizer or make_optimizer(model, OptimConfig(lr={"default": 0.1}))
    return Learner(
        model=model, optimizer=optimizer, parts=trained_parts(model), max_grad_norm=max_grad_norm, world=world
    )


def one_step(world: World, sets: Sets, plan: StepPlan, model: TrainModel, on_bad_media: str = "stop") -> StepResult:
    optimizer = make_optimizer(model, OptimConfig(lr={"default": 0.1}, eps=1e-3))
    return stepped(world, sets, plan, model, optimizer, on_bad_media=on_bad_media)


def test_loss_and_norms_are_those_of_plain_backward(world: World, sets: Sets) -> None:
    plan = plan_of(sets, 6)
    model = build_model(tiny_config(FAMILY), "none")
    materialize(model, world.device)
    init_random(model, 0)
    losses = [model(batch, True)[0] for batch in loaded(sets, plan)]
    (sum(losses) / plan.weight).backward()
    result = one_step(world, sets, plan, sharded_model(world))
    assert result.loss == pytest.approx(float(sum(losses).detach()) / plan.weight, rel=1e-5)
    for part, parameters in trained_parts(model).items():
        norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        assert result.part_norms[part] == pytest.approx(float(norm), rel=1e-5)
    assert result.grad_norm == pytest.approx(sum(n**2 for n in result.part_norms.values()) ** 0.5)


def test_the_time_that_batches_are_waited_for_is_measured(world: World, sets: Sets) -> None:
    plan = plan_of(sets, 3)

    def late() -> Iterator[Batch]:
        for batch in loaded(sets, plan):
            time.sleep(0.1)
            yield batch

    learner = learner_of(world, sharded_model(world))
    began = time.perf_counter()
    result = take_step(learner, plan, late(), 1.0, unwatched())
    assert 0.1 * len(plan.passes) <= result.waited < time.perf_counter() - began


def test_gradients_are_clipped_to_the_global_norm_which_is_reported_unclipped(world: World, sets: Sets) -> None:
    plan = plan_of(sets, 2)
    free, clipped = sharded_model(world), sharded_model(world)
    optimizers = [make_optimizer(model, OptimConfig(lr={"default": 0.1})) for model in (free, clipped)]
    norms = [
        stepped(world, sets, plan, model, optimizer, limit).grad_norm
        for model, optimizer, limit in zip((free, clipped), optimizers, (1e9, 0.5), strict=True)
    ]
    assert norms[0] == norms[1] > 0.5
    averages = [tensors_of(model, optimizer) for model, optimizer in zip((free, clipped), optimizers, strict=True)]
    for name, average in averages[0].items():
        if name.endswith("exp_avg"):
            torch.testing.assert_close(averages[1][name], average * (0.5 / norms[0]), rtol=1e-4, atol=1e-9)


def test_a_text_pass_without_gradients_leaves_no_old_weights_behind(world: World, sets: Sets) -> None:
    """With the vision tower alone in training, a pass without images has no backward, which else frees weights."""
    passes = [Request((sets.place(pack),), True) for pack in (0, 1)]
    weight = float(sets.target_weight[:2].sum())
    plan = replace(
        plan_of(sets, 2), packs=np.array([0, 1]), passes=passes, has_images=[True, False], has_sounds=[False] * 2
    )
    plan = replace(plan, weight=weight)
    plain = build_model(tiny_config(FAMILY), "none")
    materialize(plain, world.device)
    init_random(plain, 0)
    sharded = sharded_model(world, ["llm", "aligner"])
    set_trained(plain, frozen("llm", "aligner"))
    optimizers = [make_optimizer(model, OptimConfig(lr={"default": 0.1}, eps=1e-3)) for model in (plain, sharded)]
    for _ in range(3):
        losses = [plain(batch, has)[0] for batch, has in zip(loaded(sets, plan), plan.has_images, strict=True)]
        (losses[0] / plan.weight).backward()
        optimizers[0].step()
        optimizers[0].zero_grad()
        result = stepped(world, sets, plan, sharded, optimizers[1])
        assert result.loss == pytest.approx(float(sum(losses).detach()) / plan.weight, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_never_reaches_the_weights_and_names_step_and_packs(
    world: World, sets: Sets, value: float
) -> None:
    plan = plan_of(sets, 4)
    model = sharded_model(world)
    with torch.no_grad():
        # One word's embedding: only the packs that hold it are to blame.
        embeddings = local_of(model.hf.get_input_embeddings().weight)
        word = int(next(loaded(sets, plan)).input_ids[0, -1])
        embeddings[word] = value
        before = [local_of(parameter).clone() for parameter in model.parameters()]
    read = zip(plan.passes, loaded(sets, plan), strict=True)
    blamed = [request.places[0].pack for request, batch in read if word in batch.input_ids]
    expected = ", ".join(map(str, sorted(blamed)))
    result = one_step(world, sets, plan, model)
    assert result.fault.startswith("step 1: loss sum is nan, gradient norm nan, expected finite numbers; ")
    assert result.fault.endswith(f"; packs {expected}")
    for parameter, kept in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(local_of(parameter), kept, rtol=0, atol=0, equal_nan=True)


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
        sample_weights=pack.sample_weights[1:],
        samples=pack.samples[1:],
        media=(),
        media_bytes=b"",
    )


def test_a_masked_conversation_leaves_the_step_as_if_it_were_not_there(
    world: World, packs: list[Pack], model_folder: ModelFolder, tmp_path: Path
) -> None:
    bad = open_sets([write_shards(tmp_path / "bad", [damaged(p) if p.media else p for p in packs], model_folder, 512)])
    rest = [second_alone(pack) if pack.media else pack for pack in packs]
    without = open_sets([write_shards(tmp_path / "without", rest, model_folder, 512)])
    found = one_step(world, bad, plan_of(bad, 6), sharded_model(world), "mask")
    expected = one_step(world, without, plan_of(without, 6), sharded_model(world))
    assert len(found.masked) == 2
    assert all("cannot be decoded" in sentence for sentence in found.masked)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.part_norms["llm"] == pytest.approx(expected.part_norms["llm"], rel=1e-5)


def test_a_step_of_which_nothing_is_left_stops(world: World, model_folder: ModelFolder, tmp_path: Path) -> None:
    pack = damaged(make_pack(np.random.default_rng(0), [9], FIRST_SPECIAL, 1, model_folder))
    bad = open_sets([write_shards(tmp_path / "bad", [pack], model_folder, 512)])
    with pytest.raises(TrainError, match="step 1: every image failed, no target is left; packs 0"):
        one_step(world, bad, plan_of(bad, 1), sharded_model(world), "mask")


def test_a_pass_that_does_not_count_changes_nothing(world: World, sets: Sets) -> None:
    plan = plan_of(sets, 4)
    padded = replace(
        plan,
        passes=[*plan.passes, Request((sets.place(0),), False)],
        has_images=[*plan.has_images, True],
        has_sounds=[*plan.has_sounds, False],
    )
    models = [sharded_model(world), sharded_model(world)]
    plain, other = (one_step(world, sets, p, model) for p, model in zip((plan, padded), models, strict=True))
    assert (other.loss, other.grad_norm, other.digest) == (plain.loss, plain.grad_norm, plain.digest)
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, two)


def test_the_digest_is_that_of_the_packs_which_were_read(world: World, sets: Sets) -> None:
    plan = plan_of(sets, 5)
    assert one_step(world, sets, plan, sharded_model(world)).digest == packs_digest(sets.sidecars[0].xxh3[plan.packs])


def test_the_loss_of_each_set_adds_up_to_the_loss(
    world: World, packs: list[Pack], model_folder: ModelFolder, tmp_path: Path
) -> None:
    places = [write_shards(tmp_path / name, packs[k::2], model_folder, 512) for k, name in enumerate("ab")]
    both = open_sets(places)
    order = make_order(both, Phase(turns=share_turns([1, 2]), cursors=(0, 0)), COST, 0, 6)
    plan = next(plan_steps(order, both))
    one = tiny_recipe(FAMILY)
    recipe = replace(one, sets=one.sets * 2)
    loader = batches(PackReader(both.datasets), recipe, plan.passes, 0, 60.0)
    result = take_step(learner_of(world, sharded_model(world)), plan, loader, 1.0, unwatched())
    losses, weights = result.groups.T
    assert (weights > 0).all()
    assert weights.sum() == pytest.approx(plan.weight, rel=1e-12)
    assert losses.sum() / plan.weight == pytest.approx(result.loss, rel=1e-6)


def test_targets_that_weigh_other_than_the_sidecar_says_stop_the_run(world: World, sets: Sets) -> None:
    plan = plan_of(sets, 2)
    one_step(world, sets, replace(plan, weight=plan.weight * (1 + 5e-7)), sharded_model(world))
    with pytest.raises(TrainError, match=r"step 1: the targets that were read have the weight .*; rebuild the shards"):
        one_step(world, sets, replace(plan, weight=plan.weight * (1 + 3e-6)), sharded_model(world))


@pytest.mark.parametrize(("stop", "save"), [(0, 0), (1, 0), (0, 1)])
def test_what_a_signal_asked_for_is_known_at_the_end_of_the_step(
    world: World, sets: Sets, stop: int, save: int
) -> None:
    plan, watch = plan_of(sets, 2), Watch(asked=Asked(stop=stop, save=save))
    result = take_step(learner_of(world, sharded_model(world)), plan, loaded(sets, plan), 1.0, watch)
    assert (result.stop, result.save) == (bool(stop), bool(save))


def test_the_watchdog_hears_of_every_pass(world: World, sets: Sets) -> None:
    plan, heard = plan_of(sets, 3), list[str]()
    watch = Watch(beat=heard.append, asked=Asked())
    take_step(learner_of(world, sharded_model(world)), plan, loaded(sets, plan), 1.0, watch)
    assert heard == [f"step 1, {pack_names(request.places)}" for request in plan.passes]
