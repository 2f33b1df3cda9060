"""What a step's line says of tokens, operations and time, held against the packs themselves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmms.train.data.costs import pack_flops
from lmms.train.data.order import deal, idle_passes
from lmms.train.data.phases import order_of, read_phases
from lmms.train.data.sets import open_sets
from lmms.train.data.shards import PackReader
from lmms.train.data.steps import RankShare, plan_steps
from lmms.train.run import train
from lmms.train.step import StepResult
from lmms.train.step_log import Course, TakenStep, step_log
from lmms.train.watch.metrics import StepLog
from tests.kit.model.models import (
    AUDIO_TOKEN,
    AUDIOS,
    IMAGE_TOKEN,
    VIDEO_TOKEN,
    VISION_FAMILIES,
    tiny_cost,
    tiny_recipe,
)
from tests.kit.runs import run_config, silent, train_on_ranks, write_run


def logs_of(settings: dict[str, Any], **changes: Any) -> list[StepLog]:
    """The steps of a run."""
    logs: list[StepLog] = []
    train(run_config(settings, **changes), lambda event: logs.append(event) if isinstance(event, StepLog) else None)
    return logs


@pytest.mark.parametrize("family", ["qwen3", "qwen3_vl", "qwen2_5_omni_thinker"])
def test_tokens_by_kind_and_operations_are_those_of_the_packs_that_were_trained(family: str, tmp_path: Path) -> None:
    settings = write_run(tmp_path, family)
    log = logs_of(settings, max_steps=1, data__global_packs=11)[0]
    sets = open_sets([settings["data.shards"]])
    order = order_of(sets, read_phases(tmp_path / "out")[0])
    plan = next(plan_steps(order, sets))
    reader = PackReader(sets.datasets)
    packs = [reader.read(sets.place(pack)) for pack in plan.packs.tolist()]
    targets = sum(int((pack.targets[:, 1] - pack.targets[:, 0]).sum()) for pack in packs)
    placeholders = (IMAGE_TOKEN, VIDEO_TOKEN) if family in VISION_FAMILIES else ()
    images = sum(int(np.isin(pack.input_ids, placeholders).sum()) for pack in packs)
    sounds = sum(int((pack.input_ids == AUDIO_TOKEN).sum()) for pack in packs)
    everything = sum(len(pack.input_ids) for pack in packs)
    assert (images > 0, sounds > 0) == (family in VISION_FAMILIES, family in AUDIOS)
    assert (log.tokens, log.target_tokens, log.visual_tokens) == (everything, targets, images)
    assert log.sound_tokens == (sounds if family in AUDIOS else None)
    assert log.prompt_tokens == everything - targets - images - sounds
    cost = tiny_cost(family)
    # Windows at the edges of images count as whole windows.
    rel = 1e-2 if cost.window else 1e-6
    assert log.flops == pytest.approx(sum(pack_flops(cost, pack) for pack in packs), rel=rel)


def test_rates_are_tokens_over_the_seconds_of_the_step(tmp_path: Path) -> None:
    log = logs_of(write_run(tmp_path, "qwen3_vl"), max_steps=1)[0]
    assert log.seconds > 0
    for kind in ("", "target_", "prompt_", "visual_", "padding_"):
        rate, tokens = getattr(log, f"{kind}tokens_per_s"), getattr(log, f"{kind}tokens")
        assert rate == pytest.approx(tokens / log.seconds)
    assert (log.mfu, log.busy_mfu) == (None, None)


def test_mfu_is_operations_over_what_all_ranks_could_do_with_and_without_the_wait(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3")
    train(run_config(settings, max_steps=1), silent)
    sets = open_sets([settings["data.shards"]])
    phase = read_phases(tmp_path / "out")[0]
    order = order_of(sets, phase)
    plan = next(plan_steps(order, sets, RankShare(0, 2)))
    result = StepResult(
        loss=1.0,
        grad_norm=1.0,
        part_norms={"llm": 1.0},
        waited=0.5,
        masked=[],
        fault="",
        digest=0,
        groups=sets.target_weight[:1].reshape(1, 1).repeat(2, axis=1),
        stop=False,
        save=False,
    )
    flops = int(order.costs[plan.packs].sum())
    recipe = tiny_recipe("qwen3")
    course = Course(order=order, phase=phase, recipe=recipe, steps=9, lr=1.0, resumed_from=0, peak=2 * flops)
    log = step_log(course, TakenStep(plan=plan, result=result, lr_share=1.0, seconds=2.0, memory=1), 0, None)
    assert log.mfu == pytest.approx(1 / 4)
    assert log.busy_mfu == pytest.approx(1 / 3)
    assert log.data_wait == 0.25


@pytest.mark.parametrize(
    ("packs", "world", "micro"), [(8, 4, 2), (9, 4, 2), (11, 4, 1), (5, 3, 2), (1, 8, 1), (7, 2, 3)]
)
def test_idle_passes_are_those_that_count_for_nothing_on_any_rank(packs: int, world: int, micro: int) -> None:
    import numpy as np

    numbers = np.arange(packs)
    dealt = [one for rank in range(world) for one in deal(numbers, rank, world, micro)]
    assert idle_passes(packs, world, micro) == sum(not counts for _, counts in dealt)


def test_packs_repeated_for_ranks_with_nothing_left_are_padding(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3")
    assert [log.padding_tokens for log in logs_of(settings, data__global_packs=3, max_steps=2)] == [0, 0]
    sets = open_sets([settings["data.shards"]])
    order = order_of(sets, read_phases(tmp_path / "out")[0])
    plan = next(plan_steps(order, sets, RankShare(0, 2)))
    assert plan.padding_tokens == int(sets.tokens[plan.packs[-1]]) > 0


def test_the_lines_of_a_resumed_run_say_from_where(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3")
    assert [log.resumed_from for log in logs_of(settings, max_steps=2)] == [0, 0]
    assert [log.resumed_from for log in logs_of(settings, max_steps=4)] == [2, 2]


def test_two_ranks_log_the_same_tokens_and_operations_as_one(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3_vl")
    one = logs_of(settings, max_steps=2)
    train_on_ranks([run_config(settings, max_steps=2, output=str(tmp_path / "two"))], 2)
    from lmms.train.watch.history import read_history

    two = read_history(tmp_path / "two")
    for name in ("tokens", "target_tokens", "prompt_tokens", "visual_tokens", "flops"):
        assert two.column(name).tolist() == [getattr(log, name) for log in one], name
