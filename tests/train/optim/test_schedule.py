"""The learning rate of each step, beside the Hugging Face Trainer's."""

from typing import Literal

import pytest
import torch
from transformers import get_scheduler

from lmms.configs.settings.optim import OptimConfig
from lmms.train.optim.schedule import lr_share

STEPS, WARMUP = 40, 6


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_after_the_warm_up_the_rates_are_those_of_the_hugging_face_trainer(
    schedule: Literal["cosine", "linear"],
) -> None:
    """Its warm-up is one step behind ours: its first step has the rate 0. See docs/run.md."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(schedule, optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS)
    shares = []
    for _ in range(STEPS):
        shares.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    config = OptimConfig(schedule=schedule, warmup_steps=WARMUP)
    ours = [lr_share(step, config, STEPS) for step in range(1, STEPS + 1)]
    assert ours[WARMUP:] == pytest.approx(shares[WARMUP:])
    assert shares[0] == 0
    assert ours[: WARMUP - 1] == pytest.approx(shares[1:WARMUP])


def test_a_longer_run_has_another_schedule_from_the_next_step_on() -> None:
    config = OptimConfig(schedule="cosine", warmup_steps=0)
    assert lr_share(40, config, 40) < 0.01
    assert lr_share(41, config, 80) > 0.4
