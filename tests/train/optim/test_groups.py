"""What is trained, with what decay, at what learning rate."""

from dataclasses import replace

import pytest
import torch

from lmms.configs.by_part import Part
from lmms.configs.errors import ConfigError
from lmms.configs.settings.optim import OptimConfig
from lmms.train.optim.groups import make_optimizer, set_trained, trained_parts
from lmms.train.optim.schedule import lr_share
from tests.kit.model.models import frozen, part_of, tiny_model

PEAK = OptimConfig(lr={"default": 2.0})


def rates(config: OptimConfig, max_steps: int) -> list[float]:
    return [config.lr["default"] * lr_share(step, config, max_steps) for step in range(1, max_steps + 1)]


def test_averages_are_kept_by_the_betas_that_are_set() -> None:
    layer = torch.nn.Linear(3, 2, bias=False)
    optimizer = make_optimizer(layer, OptimConfig(betas=(0.5, 0.75)))
    layer.weight.grad = torch.full_like(layer.weight, 2.0)
    optimizer.step()
    state = optimizer.state[layer.weight]
    torch.testing.assert_close(state["exp_avg"], torch.full((2, 3), 0.5 * 2.0))
    torch.testing.assert_close(state["exp_avg_sq"], torch.full((2, 3), 0.25 * 4.0))


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


def test_warm_up_may_be_a_share_of_the_steps() -> None:
    by_share = replace(PEAK, warmup_ratio=0.3)
    assert rates(by_share, 9) == rates(replace(PEAK, warmup_steps=3), 9)
    assert rates(by_share, 9)[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])


def test_a_share_of_the_steps_is_rounded_up_but_not_for_what_float64_adds() -> None:
    for steps, ratio, warmup in ((100, 0.07, 7), (100, 0.55, 55), (9, 0.3, 3), (10, 0.11, 2), (5, 0.01, 1)):
        assert rates(replace(PEAK, warmup_ratio=ratio), steps) == rates(replace(PEAK, warmup_steps=warmup), steps)
    wsd = replace(PEAK, schedule="wsd", warmup_steps=0)
    assert rates(replace(wsd, decay_ratio=0.07), 100).count(PEAK.lr["default"]) == 94
    assert rates(replace(wsd, decay_ratio=0.11), 10) == rates(replace(wsd, decay_ratio=0.2), 10)


def test_wsd_stays_at_the_peak_and_falls_in_a_line_at_the_end() -> None:
    config = replace(PEAK, schedule="wsd", warmup_steps=2, decay_ratio=0.4, min_lr_ratio=0.5)
    assert rates(config, 10) == pytest.approx([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.75, 1.5, 1.25])


def test_wsd_that_decays_all_the_time_starts_after_the_warm_up() -> None:
    config = replace(PEAK, schedule="wsd", warmup_steps=2, decay_ratio=1.0)
    assert rates(config, 6) == rates(replace(config, schedule="linear"), 6)


def test_each_part_and_pattern_moves_at_its_own_rate() -> None:
    """AdamW's first step moves every weight by its learning rate."""
    model = tiny_model("qwen3_vl")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    lr = {"default": 0.1, "vision": 0.2, "aligner": 0.3, r"layers\.1\.": 0.4, "q_proj": 0.5}
    optimizer = make_optimizer(model, OptimConfig(lr=lr, weight_decay=0.0, eps=1e-12))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["peak"]
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = 0.1 if part_of("qwen3_vl", name) == "llm" else lr[part_of("qwen3_vl", name)]
        expected = 0.5 if "q_proj" in name else 0.4 if "layers.1." in name else expected
        moved = (before[name] - parameter.detach()) / expected
        torch.testing.assert_close(moved, torch.full_like(moved, 0.5), rtol=1e-4, atol=1e-4)
    assert {group["peak"] for group in optimizer.param_groups} == set(lr.values())


def test_a_pattern_says_what_is_trained_whatever_its_part() -> None:
    model = tiny_model("qwen3_vl")
    set_trained(model, {"default": "frozen", "vision": "full", "visual.blocks.0": "frozen", "lm_head": "full"})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {part_of("qwen3_vl", name) for name in trained} == {"vision", "llm"}
    assert {name for name in trained if part_of("qwen3_vl", name) == "llm"} == {"hf.lm_head.weight"}
    assert not any("visual.blocks.0." in name for name in trained)
    assert any("visual.blocks.1." in name for name in trained)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("visoin", "did you mean 'vision'"),
        ("qproj", "did you mean 'q_proj'"),
        ("lm", "did you mean 'llm'"),
        ("defualt", "did you mean 'default'"),
        (r"layers\.9\.", "in no parameter's name"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused_with_what_is_near(pattern: str, message: str) -> None:
    model = tiny_model("qwen3_vl")
    with pytest.raises(ConfigError, match=rf"train: pattern .*{message}"):
        set_trained(model, {"default": "full", pattern: "frozen"})
    with pytest.raises(ConfigError, match=rf"optim.lr: pattern .*{message}"):
        make_optimizer(model, OptimConfig(lr={"default": 1.0, pattern: 2.0}))


def test_freezing_all_that_a_model_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing of this model would be trained"):
        set_trained(tiny_model("qwen3"), frozen("llm"))


def test_only_parameters_of_two_or_more_dimensions_decay() -> None:
    model = tiny_model("qwen2_vl")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer = make_optimizer(model, OptimConfig(lr={"default": 0.1}, weight_decay=0.5))
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-6, atol=0)
    assert {parameter.ndim for parameter in model.parameters()} == {1, 2, 5}


def test_averages_exist_before_the_first_gradient_and_count_only_steps_with_one() -> None:
    model = tiny_model("qwen3_vl")
    set_trained(model, frozen("aligner"))
    optimizer = make_optimizer(model, OptimConfig())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert optimizer.state.keys() == set(trained)
    trained[0].grad = torch.ones_like(trained[0])
    optimizer.step()
    assert [float(optimizer.state[parameter]["step"]) for parameter in trained[:2]] == [1.0, 0.0]


@pytest.mark.parametrize("part", ["llm", "vision", "aligner"])
def test_freezing_a_part_leaves_the_others(part: Part) -> None:
    model = tiny_model("qwen3_vl")
    set_trained(model, frozen(part))
    assert {part_of("qwen3_vl", name) for name, p in model.named_parameters() if not p.requires_grad} == {part}
    parts = trained_parts(model)
    assert parts.keys() == {"llm", "vision", "aligner"} - {part}
    assert sum(map(len, parts.values())) == sum(p.requires_grad for p in model.parameters())


def test_freezing_what_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'vision', which this model does not have; it has llm"):
        set_trained(tiny_model("qwen3"), frozen("vision"))
