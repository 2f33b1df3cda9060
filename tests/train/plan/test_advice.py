"""The changes that a dry run tries: each by itself, in order, and none that is already there."""

from dataclasses import replace
from typing import Any

import pytest

from lmms.configs.settings.data import DataConfig
from lmms.configs.settings.memory import MemoryConfig
from lmms.configs.settings.train import ModelConfig, TrainConfig
from lmms.train.plan.advice import single_changes

VISION = "memory.recompute_vision: full"
ELEMENTWISE = "memory.recompute: elementwise"
FULL = "memory.recompute: full"
OFFLOAD = "memory.offload_activations_gb: 3"
FEWER = "data.micro_packs: 1"


def settings(packs: int = 1, **memory: Any) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(path="m"),
        data=DataConfig(shards="d", micro_packs=packs, global_packs=8),
        output="o",
        max_steps=1,
        memory=MemoryConfig(**memory),
    )


BOTH = ("llm", "vision")
FROZEN = "train.vision: frozen"
IN_8_BITS = "optim.name: adamw-8bit"


def tried(config: TrainConfig, trained: tuple[str, ...] = BOTH) -> list[str]:
    return [change for change, _ in single_changes(config, trained, offload_gb=3)]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (settings(recompute="none"), [ELEMENTWISE, VISION, FULL, OFFLOAD]),
        (settings(recompute="elementwise"), [VISION, FULL]),
        (settings(recompute="elementwise", recompute_vision="full"), [FULL]),
        (settings(recompute="full", recompute_vision="none"), [VISION, OFFLOAD]),
        (settings(recompute="full"), [OFFLOAD]),
        (settings(recompute="full", offload_activations_gb=4), []),
        (settings(recompute="none", offload_activations_gb=1), [VISION, FULL, OFFLOAD]),
        (settings(2), [FEWER, OFFLOAD]),
    ],
)
def test_each_setting_is_tried_by_itself_and_none_that_the_others_refuse(
    config: TrainConfig, expected: list[str]
) -> None:
    assert tried(config) == [*expected, FROZEN, IN_8_BITS]


def test_a_tower_that_keeps_nothing_is_left_alone() -> None:
    assert tried(settings(recompute="none"), ("llm",)) == [ELEMENTWISE, FULL, OFFLOAD, IN_8_BITS]


def test_a_change_is_the_setting_of_its_words_and_nothing_else() -> None:
    before = settings(2, recompute="none")
    changed = dict(single_changes(before, BOTH, offload_gb=3))
    assert changed[FEWER] == replace(before, data=replace(before.data, micro_packs=1))
    assert changed[VISION].memory == MemoryConfig(recompute="none", recompute_vision="full")
    assert changed[OFFLOAD].memory == MemoryConfig(recompute="none", offload_activations_gb=3)
    assert changed[FROZEN] == replace(before, train={"default": "full", "vision": "frozen"})
    assert changed[IN_8_BITS] == replace(before, optim=replace(before.optim, name="adamw-8bit"))
