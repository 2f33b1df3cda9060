"""take_step with a fault in some steps, and a run that takes such steps."""

from collections.abc import Callable, Collection
from typing import Any

import pytest
import torch

import lmms.train.loop
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import tensors_of
from lmms.train.parallel.sharding import local_of
from lmms.train.run import train
from lmms.train.step import take_step
from lmms.train.watch.metrics import StepLog

Step = Callable[..., Any]


def poisoned(steps: Collection[int]) -> Step:
    """take_step with the final norm of the model not a number in these steps, whose update has to stay away."""

    def step(learner: Any, plan: Any, *rest: Any) -> Any:
        if plan.step not in steps:
            return take_step(learner, plan, *rest)
        states = tensors_of(learner.model, learner.optimizer)
        norm = local_of(learner.model.hf.model.language_model.norm.weight)
        kept = norm.detach().clone()
        norm.detach().fill_(float("nan"))
        before = {name: value.detach().clone() for name, value in states.items()}
        result = take_step(learner, plan, *rest)
        for name, value in states.items():
            torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
        norm.detach().copy_(kept)
        return result

    return step


def train_with(monkeypatch: pytest.MonkeyPatch, step: Step, config: TrainConfig) -> list[str]:
    """Train; what was said."""
    events: list[StepLog | str] = []
    with monkeypatch.context() as patch:
        patch.setattr(lmms.train.loop, "take_step", step)
        train(config, events.append)
    return [event for event in events if isinstance(event, str)]
