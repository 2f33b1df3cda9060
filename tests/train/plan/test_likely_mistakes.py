"""Learning rates that can hardly be meant have a line; those of a usual run have none."""

from typing import Any

import pytest

from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.train.model.lora import add_lora
from lmms.train.optim.groups import set_trained
from lmms.train.plan.likely_mistakes import likely_mistakes
from tests.kit.model.models import tiny_model


def lines(train: dict[str, Any], steps: int, **optim: Any) -> list[str]:
    model, lora = tiny_model("qwen3_vl"), LoraConfig()
    add_lora(model, train, lora)
    set_trained(model, train, lora)
    return list(likely_mistakes(OptimConfig(**optim), model, steps))


def test_a_rate_of_a_frozen_part_is_named() -> None:
    train = {"default": "full", "vision": "frozen"}
    (line,) = lines(train, 10, lr={"default": 1e-5, "vision": 1e-6})
    assert line == "optim.lr.vision is set, but nothing of vision is trained: train freezes it"
    assert lines({"default": "full"}, 10, lr={"default": 1e-5, "vision": 1e-6}) == []


@pytest.mark.parametrize(("rate", "low"), [(1e-5, True), (1e-4, False)])
def test_lora_at_the_rate_of_full_training_is_named(rate: float, low: bool) -> None:
    train = {"default": "frozen", "llm": "lora"}
    found = lines(train, 10, lr={"default": rate})
    assert [line.startswith("LoRA is trained at 1e-05, which is low") for line in found] == [True] * low


def test_a_warm_up_that_is_longer_than_the_run_is_named() -> None:
    (line,) = lines({"default": "full"}, 2, warmup_steps=20)
    assert line.startswith("the learning rate warms up for 20 steps, and the run has 2: it never reaches its peak")
    assert lines({"default": "full"}, 20, warmup_steps=20) == []
