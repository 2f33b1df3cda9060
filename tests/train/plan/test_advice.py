"""The changes that a dry run tries: in order, each itself, and none that is already there."""

from dataclasses import replace
from typing import Any

import pytest

from lmms.configs.settings.data import DataConfig
from lmms.configs.settings.memory import MemoryConfig
from lmms.configs.settings.train import ModelConfig, TrainConfig
from lmms.train.plan.advice import savings

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


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (settings(recompute="none"), [ELEMENTWISE, f"{ELEMENTWISE} and {VISION}", FULL, f"{FULL} and {OFFLOAD}"]),
        (settings(recompute="elementwise"), [VISION, FULL, f"{FULL} and {OFFLOAD}"]),
        (settings(recompute="elementwise", recompute_vision="full"), [FULL, f"{FULL} and {OFFLOAD}"]),
        (settings(recompute="full", recompute_vision="none"), [VISION, f"{VISION} and {OFFLOAD}"]),
        (settings(recompute="full"), [OFFLOAD]),
        (settings(recompute="full", offload_activations_gb=4), []),
        (settings(2), [FEWER, OFFLOAD, f"{FEWER} and {OFFLOAD}"]),
        (
            settings(2, recompute="elementwise"),
            [FEWER, VISION, FULL, f"{FULL} and {OFFLOAD}", f"{FEWER} and {FULL}", f"{FEWER} and {FULL} and {OFFLOAD}"],
        ),
    ],
)
def test_changes_come_with_the_cheapest_first(config: TrainConfig, expected: list[str]) -> None:
    found = savings(config, keeps_vision=True, offload_gb=3)
    assert [change for change, _ in found] == expected


def test_a_tower_that_keeps_nothing_is_left_alone() -> None:
    found = savings(settings(recompute="none"), keeps_vision=False, offload_gb=0)
    assert [change for change, _ in found] == [ELEMENTWISE, FULL]


def test_the_settings_are_those_of_the_words() -> None:
    before = settings(2, recompute="none")
    changed = dict(savings(before, keeps_vision=True, offload_gb=3))
    assert changed[FEWER] == replace(before, data=replace(before.data, micro_packs=1))
    assert changed[f"{ELEMENTWISE} and {VISION}"].memory == MemoryConfig(
        recompute="elementwise", recompute_vision="full"
    )
    assert changed[f"{FULL} and {OFFLOAD}"].memory == MemoryConfig(recompute="full", offload_activations_gb=3)
