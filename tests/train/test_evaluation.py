"""An evaluation is the loss over every pack once, on any number of ranks, and leaves no trace in the training."""

import json
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmms.configs.contract.manifest import Dataset, open_dataset
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import TrainError
from lmms.train.batch.batch import make_batch
from lmms.train.batch.loader import Loading
from lmms.train.batch.recipe import Recipe, make_recipe
from lmms.train.data.shards import PackReader, read_sidecar
from lmms.train.evaluation import EvalSet, Evaluation, evaluate, plan_passes
from lmms.train.model.build import blocks, build_model, init_random, materialize
from lmms.train.model.forward import TrainModel
from lmms.train.parallel.sharding import local_of, shard_model
from lmms.train.parallel.world import World, start_world, stop_world
from lmms.train.watch.signals import Asked
from lmms.train.watch.watch import Watch
from tests.kit.model.models import FIRST_SPECIAL, VISION_FAMILIES, tiny_config, tiny_model
from tests.kit.ranks import on_ranks
from tests.kit.runs import write_model_folder
from tests.kit.shards import make_pack, write_shards

PACKS = 7
SOURCES = ("first.jsonl", "second.jsonl", "none of it.jsonl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For a text and a vision family: seven packs of conversations of two sources; packs 2 and 5 show pictures."""
    made = {}
    for family in ("qwen3", "qwen2_5_vl"):
        folder = tmp_path_factory.mktemp(family)
        model = write_model_folder(folder / "model", family)
        made[family] = write_shards(folder / "shards", packs_of(family, model), model, 512, SOURCES)
    return made


def packs_of(family: str, model: ModelFolder) -> list[Pack]:
    rng = np.random.default_rng(5)
    packs = []
    for i in range(PACKS):
        images = 2 * int(family in VISION_FAMILIES and i in (2, 5))
        pack = make_pack(rng, rng.integers(6, 20, 1 + i % 3).tolist(), FIRST_SPECIAL, images, model)
        samples = pack.samples.copy()
        samples[:, 0] = rng.integers(0, 2, len(samples))
        packs.append(replace(pack, samples=samples))
    return packs


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    yield start_world("cpu")
    stop_world()


def recipe_of(dataset: Dataset, on_bad_media: str = "stop") -> Recipe:
    return make_recipe([dataset.manifest], tiny_config(dataset.manifest.family), on_bad_media, by="source")


WAYS: dict[str, dict[str, Any]] = {
    # On a CPU offload moves nothing: it is FSDP2 as several ranks have it.
    "sharded": {"dtype": torch.float32, "offload": True},
    "copied": {"dtype": torch.bfloat16},
}
"""How one rank comes to the weights that it computes with."""


def sharded_model(world: World, family: str, way: str = "sharded") -> TrainModel:
    model = build_model(tiny_config(family), "full")
    shard_model(model, blocks(model), world, **WAYS[way])
    materialize(model, world.device)
    init_random(model, 0)
    return model


def evaluated(
    model: TrainModel,
    folder: Path,
    world: World,
    micro_packs: int = 1,
    workers: int = 0,
    on_bad_media: str = "stop",
    beat: Callable[[str], None] = lambda doing: None,
) -> Evaluation:
    found = evaluation(model, folder, world, Asked(), micro_packs, workers, on_bad_media, beat)
    assert found is not None
    return found


def evaluation(
    model: TrainModel,
    folder: Path,
    world: World,
    asked: Asked,
    micro_packs: int = 1,
    workers: int = 0,
    on_bad_media: str = "stop",
    beat: Callable[[str], None] = lambda doing: None,
) -> Evaluation | None:
    dataset = open_dataset(folder)
    return evaluate(
        model,
        EvalSet(dataset=dataset, sidecar=read_sidecar(dataset), recipe=recipe_of(dataset, on_bad_media)),
        world,
        Loading(micro_packs, workers, stall_s=600),
        Watch(beat=beat, asked=asked),
    )


def plain_loop(folder: Path) -> Evaluation:
    """Every pack through a model that is not sharded, one after the other."""
    dataset = open_dataset(folder)
    reader, sidecar, recipe = PackReader([dataset]), read_sidecar(dataset), recipe_of(dataset)
    model = tiny_model(dataset.manifest.family)
    sums = np.zeros((len(SOURCES), 2))
    for place in map(sidecar.place, range(PACKS)):
        batch = make_batch([reader.read(place)], recipe, [place])
        with torch.no_grad():
            _, by_group = model(batch, batch.images > 0)
        sums += by_group.numpy()
    reader.close()
    by_source = {name: loss / weight for name, (loss, weight) in zip(SOURCES, sums.tolist(), strict=True) if weight}
    loss, weight = sums.sum(axis=0).tolist()
    return Evaluation(loss=loss / weight, by_source=by_source, target_weight=weight)


def assert_equal(found: Evaluation, expected: Evaluation) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert found.by_source == pytest.approx(expected.by_source, rel=1e-6)
    assert found.target_weight == pytest.approx(expected.target_weight, rel=1e-12)


@pytest.mark.parametrize("family", ["qwen3", "qwen2_5_vl"])
@pytest.mark.parametrize(("micro_packs", "workers"), [(1, 0), (3, 2), (20, 1)])
def test_the_loss_is_that_of_a_plain_loop_over_the_packs(
    folders: dict[str, Path], world: World, family: str, micro_packs: int, workers: int
) -> None:
    found = evaluated(sharded_model(world, family), folders[family], world, micro_packs, workers)
    assert_equal(found, plain_loop(folders[family]))
    assert list(found.by_source) == ["first.jsonl", "second.jsonl"]
    total = read_sidecar(open_dataset(folders[family])).target_weight.sum()
    assert found.target_weight == pytest.approx(float(total), rel=1e-12)


def _evaluate_as_rank(rank: int, ranks: int, folders: dict[str, Path], out: Path) -> None:
    world = start_world("cpu")
    found = {}
    for family, folder in folders.items():
        model = sharded_model(world, family)
        for micro_packs in (1, 2):
            found[f"{family} {micro_packs}"] = asdict(evaluated(model, folder, world, micro_packs, rank))
    (out / f"{rank}.json").write_text(json.dumps(found))
    stop_world()


def test_two_ranks_find_the_numbers_of_one(folders: dict[str, Path], world: World, tmp_path: Path) -> None:
    """Seven packs are not to be shared evenly, and pictures are on one rank or the other."""
    on_ranks(_evaluate_as_rank, 2, folders, tmp_path)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for name, found in first.items():
        family, micro_packs = name.split()
        alone = evaluated(sharded_model(world, family), folders[family], world, int(micro_packs))
        assert_equal(Evaluation(**found), alone)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("micro_packs", [1, 2, 4])
def test_each_pack_counts_once_and_every_rank_has_as_many_passes(
    folders: dict[str, Path], ranks: int, micro_packs: int
) -> None:
    sidecar = read_sidecar(open_dataset(folders["qwen2_5_vl"]))
    plans = [plan_passes(sidecar, rank, ranks, micro_packs) for rank in range(ranks)]
    counted = [place.pack for plan in plans for one, *_ in plan if one.counts for place in one.places]
    assert sorted(counted) == list(range(PACKS))
    assert len({len(plan) for plan in plans}) == 1
    for of_a_pass in zip(*plans, strict=True):
        shows = any(place.pack in (2, 5) for one, *_ in of_a_pass for place in one.places)
        assert {tuple(towers) for _, *towers in of_a_pass} == {(shows, False)}
        assert all(1 <= len(one.places) <= micro_packs for one, *_ in of_a_pass)
    own = [place.pack for one, *_ in plans[-1] if one.counts for place in one.places]
    assert own == list(range(PACKS))[ranks - 1 :: ranks]


def random_states() -> bytes:
    return pickle.dumps((torch.get_rng_state().tolist(), np.random.get_state(), random.getstate()))


@pytest.mark.parametrize("way", WAYS)
def test_training_does_not_notice_an_evaluation(folders: dict[str, Path], world: World, way: str) -> None:
    """Modes, random numbers, gradients and what was gathered or copied: the next backward is the same to the bit."""
    dataset = open_dataset(folders["qwen2_5_vl"])
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    recipe = make_recipe([dataset.manifest], tiny_config("qwen2_5_vl"), "stop")
    batches = [make_batch([reader.read(place)], recipe, [place]) for place in map(sidecar.place, (2, 3))]
    reader.close()
    grads = []
    for between in (False, True):
        model = sharded_model(world, "qwen2_5_vl", way)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.hf.model.visual.eval()
        modes = [module.training for module in model.modules()]
        for batch in batches:
            model(batch, True)[0].backward()
            optimizer.step()
            if between:
                before = random_states()
                evaluated(model, folders["qwen2_5_vl"], world, workers=1)
                assert random_states() == before
            optimizer.zero_grad()
        model(batches[0], True)[0].backward()
        assert [module.training for module in model.modules()] == modes
        grads.append({name: local_of(parameter.grad) for name, parameter in model.named_parameters()})
    assert all(torch.equal(grads[1][name], gradient) for name, gradient in grads[0].items())


def test_an_evaluation_ends_as_soon_as_a_rank_is_to_stop(folders: dict[str, Path], world: World) -> None:
    asked, passes = Asked(), list[str]()

    def stop_in_the_second(doing: str) -> None:
        passes.append(doing)
        asked.stop = int(len(passes) == 2)

    model = sharded_model(world, "qwen3")
    assert evaluation(model, folders["qwen3"], world, asked, beat=stop_in_the_second) is None
    assert len(passes) == 2
    assert model.training


def test_each_pass_is_announced_and_none_prepares_a_backward(folders: dict[str, Path], world: World) -> None:
    model = sharded_model(world, "qwen3")
    events: list[str | bool] = []
    model.register_forward_hook(lambda *_: events.append(torch.is_grad_enabled()))
    evaluated(model, folders["qwen3"], world, micro_packs=3, beat=events.append)
    names = [f"evaluation, pass {i} of 3: packs {packs}" for i, packs in [(1, [0, 1, 2]), (2, [3, 4, 5]), (3, [6])]]
    assert events == [names[0], False, names[1], False, names[2], False]


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_model_is_evaluated_with_the_weights_of_now(folders: dict[str, Path], world: World, way: str) -> None:
    """Twice with a change between: nothing that was gathered or copied for the first is used by the second."""
    model = sharded_model(world, "qwen3", way)
    model.requires_grad_(False)
    first = evaluated(model, folders["qwen3"], world)
    with torch.no_grad():
        for parameter in model.parameters():
            local_of(parameter).mul_(0.5)
    second = evaluated(model, folders["qwen3"], world)
    assert abs(second.loss - first.loss) > 1e-2


def with_bad_pictures(folder: Path, packs: Callable[[ModelFolder], list[Pack]]) -> Path:
    model = write_model_folder(folder / "model", "qwen2_5_vl")
    bad = [replace(pack, media_bytes=b"\0" * len(pack.media_bytes)) for pack in packs(model)]
    return write_shards(folder / "shards", bad, model, 512, SOURCES)


def test_a_conversation_whose_picture_fails_is_left_out_of_loss_and_weight(world: World, tmp_path: Path) -> None:
    folder = with_bad_pictures(tmp_path, partial(packs_of, "qwen2_5_vl"))
    model = sharded_model(world, "qwen2_5_vl")
    with pytest.raises(TrainError, match=r"pack 2, segment 0: .* cannot be decoded"):
        evaluated(model, folder, world)
    found = evaluated(model, folder, world, on_bad_media="mask")
    assert 0 < found.target_weight < read_sidecar(open_dataset(folder)).target_weight.sum()


def test_an_evaluation_of_which_nothing_is_left_stops(world: World, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = with_bad_pictures(tmp_path, lambda model: [make_pack(rng, [9], FIRST_SPECIAL, 1, model)])
    with pytest.raises(TrainError, match="every image failed, no target is left to evaluate on"):
        evaluated(sharded_model(world, "qwen2_5_vl"), folder, world, on_bad_media="mask")
