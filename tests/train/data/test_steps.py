"""What each rank does in a step: a share of the same packs, in as many passes as every other rank."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Pack
from lmms.train.data.mixture import Phase, share_turns
from lmms.train.data.order import Order
from lmms.train.data.sets import Sets, make_order, open_sets
from lmms.train.data.shards import Place
from lmms.train.data.steps import Progress, RankShare, StepPlan, pack_names, plan_steps
from tests.kit.model.models import FIRST_SPECIAL
from tests.kit.runs import write_model_folder
from tests.kit.shards import make_pack, write_shards

COST = ModelCost(token=1, target=0, squared_length=0, patch=0, squared_image=0, squared_window=0, window=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return write_model_folder(tmp_path_factory.mktemp("model"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def packs(model: ModelFolder) -> list[Pack]:
    """Six packs of two conversations; packs 0 and 3 show pictures."""
    rng = np.random.default_rng(3)
    return [make_pack(rng, [9, 7 + i], FIRST_SPECIAL, 2 * int(i % 3 == 0), model) for i in range(6)]


@pytest.fixture(scope="module")
def sets(packs: list[Pack], model: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    return open_sets([write_shards(tmp_path_factory.mktemp("data") / "shards", packs, model, 512)])


def order_of(sets: Sets, global_packs: int) -> Order:
    return make_order(sets, Phase(), COST, 0, global_packs)


def plans(
    sets: Sets, global_packs: int, steps: int = 1, rank: int = 0, world: int = 1, micro_packs: int = 1
) -> list[StepPlan]:
    order = order_of(sets, global_packs)
    return list(islice(plan_steps(order, sets, RankShare(rank, world, micro_packs)), steps))


def counted(plan: StepPlan) -> list[list[int]]:
    """The packs of each pass that counts."""
    return [[place.pack for place in request.places] for request in plan.passes if request.counts]


def test_ranks_share_the_packs_of_a_step_and_agree_on_all_else(sets: Sets) -> None:
    alone = plans(sets, 4, steps=3)
    ranks = [plans(sets, 4, steps=3, rank=rank, world=2) for rank in range(2)]
    assert [plan.step for plan in alone] == [1, 2, 3]
    assert [plan.position for plan in alone] == [0, 4, 8]
    for whole, first, second in zip(alone, *ranks, strict=True):
        packs = whole.packs.tolist()
        assert sets.tokens[packs].tolist() == sorted(sets.tokens[packs].tolist(), reverse=True)
        assert counted(whole) == [[i] for i in packs]
        assert counted(first) == [[i] for i in packs[0::2]]
        assert counted(second) == [[i] for i in packs[1::2]]
        assert whole.has_images == [i % 3 == 0 for i in packs]
        assert first.has_images == second.has_images == [a or b for a, b in np.reshape(whole.has_images, (2, 2))]
        shared = [(p.weight, p.tokens, p.target_tokens) for p in (whole, first, second)]
        assert len(set(shared)) == 1


@pytest.mark.parametrize(
    ("world", "micro_packs", "idle"), [(3, 1, 1), (4, 1, 3), (2, 2, 1), (4, 2, 0), (8, 3, 3), (5, 1, 0)]
)
def test_ranks_that_do_not_divide_a_step_have_equal_passes_and_every_pack_counts_once(
    sets: Sets, world: int, micro_packs: int, idle: int
) -> None:
    everyone = [plans(sets, 5, rank=rank, world=world, micro_packs=micro_packs)[0] for rank in range(world)]
    assert len({len(plan.passes) for plan in everyone}) == 1
    assert all(request.places for plan in everyone for request in plan.passes)
    taken = [pack for plan in everyone for packs in counted(plan) for pack in packs]
    assert sorted(taken) == sorted(everyone[0].packs.tolist())
    assert [request.counts for plan in everyone for request in plan.passes].count(False) == idle
    assert all(request.counts for plan in everyone for request in plan.passes[:-1])
    for number, has_images in enumerate(everyone[0].has_images):
        shown = [sets.visual_tokens[place.pack] > 0 for plan in everyone for place in plan.passes[number].places]
        assert has_images == any(shown)


def test_the_denominator_is_the_weight_of_all_targets(sets: Sets, packs: list[Pack]) -> None:
    (plan,) = plans(sets, 5, world=4)
    weights = [p.target_weights.astype(float) @ np.diff(p.targets)[:, 0] for p in (packs[i] for i in plan.packs)]
    assert plan.weight == pytest.approx(sum(weights))
    assert plan.target_tokens == sum(int(np.diff(packs[i].targets).sum()) for i in plan.packs)


def test_a_run_goes_on_from_a_position_with_steps_of_another_size(sets: Sets) -> None:
    before = plans(sets, 4, steps=3)
    order = replace(order_of(sets, 4), global_packs=2)
    after = list(islice(plan_steps(order, sets, done=Progress(1, 4)), 4))
    assert [plan.step for plan in after] == [2, 3, 4, 5]
    for large, *small in zip(before[1:], after[0::2], after[1::2], strict=True):
        assert sorted(large.packs.tolist()) == sorted(pack for plan in small for pack in plan.packs.tolist())


def test_packs_of_a_mixture_are_read_from_their_own_sets(packs: list[Pack], model: ModelFolder, tmp_path: Path) -> None:
    places = [write_shards(tmp_path / name, chosen, model, 512) for name, chosen in (("a", packs[:2]), ("b", packs))]
    sets = open_sets(places)
    order = make_order(sets, Phase(turns=share_turns([1, 1]), cursors=(0, 0)), COST, 0, 8)
    plan = next(plan_steps(order, sets))
    found = [request.places[0] for request in plan.passes]
    assert sorted(place.set for place in found) == [0] * 4 + [1] * 4
    for place, number in zip(found, plan.packs.tolist(), strict=True):
        assert sets.tokens[number] == len((packs[:2], packs)[place.set][place.pack].input_ids)


def test_packs_are_named_once_and_by_their_set_where_that_is_not_the_first() -> None:
    places = [Place(set=k, pack=pack, shard=0, offset=0, bytes=0, xxh3=0) for k, pack in ((1, 7), (0, 3), (1, 7))]
    assert pack_names(places) == "packs 3, 7 of set 1"


def test_what_batches_are_filled_up_with_is_padding(sets: Sets) -> None:
    order = order_of(sets, 3)
    plan = next(plan_steps(order, sets, RankShare(0, 2), padded_to=512))
    assert plan.padding_tokens == 2 * 2 * 512 - plan.tokens
    assert len(plan.passes) == 2
