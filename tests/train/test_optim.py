"""What is trained, with what decay, at what learning rate."""

from dataclasses import replace

import pytest
import torch

from lmms.configs.errors import ConfigError
from lmms.configs.train import OptimConfig, Part
from lmms.train.model import part_of
from lmms.train.optim import freeze, learning_rate, make_optimizer, trained_parts
from tests.train.helpers import tiny_model

PEAK = OptimConfig(lr=2.0)


def rates(config: OptimConfig, max_steps: int) -> list[float]:
    return [learning_rate(step, config, max_steps) for step in range(1, max_steps + 1)]


def test_warm_up_rises_from_zero_to_the_peak_and_the_decay_starts_there() -> None:
    config = replace(PEAK, warmup_steps=4, schedule="linear")
    assert rates(config, 8) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5])


def test_cosine_passes_half_way_in_the_middle_and_ends_on_its_way_to_the_floor() -> None:
    assert rates(PEAK, 4) == pytest.approx([2.0, 1.0 + 2**-0.5, 1.0, 1.0 - 2**-0.5])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_floor_is_a_share_of_the_peak(schedule: str) -> None:
    config = replace(PEAK, schedule=schedule, min_lr_ratio=0.25)
    found = rates(config, 1000)
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(2.0)
    assert 0.5 < found[-1] < 0.51


def test_constant_stays_and_one_step_is_taken_at_the_peak() -> None:
    assert rates(replace(PEAK, schedule="constant", warmup_steps=1), 3) == [2.0, 2.0, 2.0]
    assert rates(PEAK, 1) == [2.0]


def test_a_warm_up_longer_than_the_run_never_decays() -> None:
    assert rates(replace(PEAK, warmup_steps=10), 2) == pytest.approx([0.2, 0.4])


def test_only_parameters_of_two_or_more_dimensions_decay() -> None:
    model = tiny_model("qwen2_vl")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-6, atol=0)
    assert {parameter.ndim for parameter in model.parameters()} == {1, 2, 5}


def test_averages_exist_before_the_first_gradient_and_count_only_steps_with_one() -> None:
    model = tiny_model("qwen3_vl")
    freeze(model, ["aligner"])
    optimizer = make_optimizer(model, OptimConfig())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert optimizer.state.keys() == set(trained)
    trained[0].grad = torch.ones_like(trained[0])
    optimizer.step()
    assert [float(optimizer.state[parameter]["step"]) for parameter in trained[:2]] == [1.0, 0.0]


@pytest.mark.parametrize("part", ["llm", "vision", "aligner"])
def test_freezing_a_part_leaves_the_others(part: Part) -> None:
    model = tiny_model("qwen3_vl")
    freeze(model, [part])
    assert {part_of(name) for name, p in model.named_parameters() if not p.requires_grad} == {part}
    parts = trained_parts(model)
    assert parts.keys() == {"llm", "vision", "aligner"} - {part}
    assert sum(map(len, parts.values())) == sum(p.requires_grad for p in model.parameters())


def test_freezing_what_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'vision', which this model does not have; it has llm"):
        freeze(tiny_model("qwen3"), ["vision"])
