"""Under each optim.name: rates and decay reach the right tensors, the bytes of states are those of real ones."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import nn

import lmms.train.optim.rules
from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.optim import OptimConfig, OptimName
from lmms.configs.settings.train import TrainConfig
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import is_lora
from lmms.train.optim.groups import make_optimizer
from lmms.train.optim.rules import bytes_by_rule, rules_of
from tests.kit.model.models import part_of, tiny_model

NAMES: tuple[OptimName, ...] = get_args(OptimName)
NEEDED: dict[str, Any] = {"model.path": "m", "data.shards": "s", "data.global_packs": 1, "output": "o", "max_steps": 1}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models have no parameter that is not small."""
    monkeypatch.setattr(lmms.train.optim.rules, "SMALL", 600)


def moved(model: TrainModel, config: OptimConfig, gradient: float) -> dict[str, torch.Tensor]:
    """By how much a step with this gradient everywhere, at half the peak rate, moves each parameter."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, config)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * group["peak"]
    optimizer.step()
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_each_part_and_pattern_moves_at_its_own_rate(name: OptimName) -> None:
    lr = {"default": 0.1, "vision": 0.2, "aligner": 0.3, r"layers\.1\.": 0.4, "q_proj": 0.5}
    config = OptimConfig(name=name, lr=lr, weight_decay=0.0, eps=1e-12)
    alike = moved(tiny_model("qwen3_vl"), replace(config, lr={"default": 1.0}), 1.0)
    for tensor, change in moved(tiny_model("qwen3_vl"), config, 1.0).items():
        expected = 0.1 if part_of("qwen3_vl", tensor) == "llm" else lr[part_of("qwen3_vl", tensor)]
        expected = 0.5 if "q_proj" in tensor else 0.4 if "layers.1." in tensor else expected
        torch.testing.assert_close(change, alike[tensor] * expected, rtol=1e-4, atol=1e-5)
        assert change.abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_only_parameters_of_two_or_more_dimensions_decay(name: OptimName) -> None:
    model = tiny_model("qwen2_vl")
    before = {tensor: parameter.detach().clone() for tensor, parameter in model.named_parameters()}
    for tensor, change in moved(model, OptimConfig(name=name, lr={"default": 0.2}, weight_decay=0.5), 0.0).items():
        expected = before[tensor] * (0.1 * 0.5 if before[tensor].ndim >= 2 else 0.0)
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_states_are_those_of_real_ones(name: OptimName) -> None:
    train: dict[str, Any] = {"default": "full", "llm": "lora"}
    models = tiny_model("qwen3_vl"), tiny_model("qwen2_5_vl", train=train)
    for model in models:
        optimizer = make_optimizer(model, OptimConfig(name=name))
        size = bytes_by_rule(name, model)
        assert optimizer.state.keys() == {p for p in model.parameters() if p.requires_grad}
        for parameter, state in optimizer.state.items():
            assert size(parameter, parameter.numel()) == sum(value.nbytes for value in state.values())
    every = [sum(bytes_by_rule(one, models[0])(p, p.numel()) for p in models[0].parameters()) for one in NAMES]
    fp32, bf16, eight_bit, muon = every
    assert eight_bit < bf16 < fp32
    assert muon < fp32


@pytest.mark.parametrize("name", NAMES[1:3])
def test_small_parameters_norms_and_biases_keep_their_averages_in_fp32(name: OptimName) -> None:
    model = tiny_model("qwen3_vl")
    rules = rules_of(name, model)
    assert {rules[p] for p in model.parameters()} == {name, "adamw"}
    for parameter in model.parameters():
        assert rules[parameter] == (name if parameter.ndim >= 2 and parameter.numel() >= 600 else "adamw")


def test_factors_of_lora_are_adamws_and_in_few_bits_where_they_are_large() -> None:
    train: dict[str, Any] = {"default": "frozen", "llm": "lora"}
    model = tiny_model("qwen3", train=train, lora=LoraConfig(rank=16))
    factors = [p for tensor, p in model.named_parameters() if is_lora(tensor)]
    for name in NAMES:
        found = {(rules_of(name, model)[p], p.numel() >= 600) for p in factors}
        large = "adamw" if name == "muon" else name
        assert found == {("adamw", False), (large, True)}


def test_a_wrong_name_is_answered_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"'adam8' .*expected one of adamw, adamw-bf16, adamw-8bit, muon"):
        load_config(TrainConfig, None, values={**NEEDED, "optim.name": "adam8"})


def test_momentum_is_muons_alone_and_below_one() -> None:
    for momentum in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=rf"optim.momentum is {momentum}, expected at least 0 and below 1"):
            OptimConfig(name="muon", momentum=momentum)
    with pytest.raises(ConfigError, match=r"optim\.momentum is 0\.9, but optim.name adamw has none"):
        OptimConfig(momentum=0.9)


def test_a_parameter_without_a_gradient_keeps_its_value_and_its_state() -> None:
    for name in NAMES:
        model = tiny_model("qwen3")
        optimizer = make_optimizer(model, OptimConfig(name=name, lr={"default": 0.1}))
        reached = model.hf.model.layers[0].mlp.up_proj.weight
        reached.grad = torch.ones_like(reached)
        before: dict[nn.Parameter, list[torch.Tensor]] = {
            parameter: [parameter.detach().clone(), *(value.clone() for value in optimizer.state[parameter].values())]
            for parameter in model.parameters()
        }
        optimizer.step()
        for parameter, values in before.items():
            now = [parameter.detach(), *optimizer.state[parameter].values()]
            assert all(map(torch.equal, now, values)) == (parameter is not reached)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("muon", "no weight of a linear layer in the blocks is trained, .*set optim.name to adamw"),
        ("adamw-8bit", "no matrix of 4,096 elements is trained"),
    ],
)
def test_an_optimizer_with_nothing_to_do_is_refused(
    name: OptimName, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms.train.optim.rules, "SMALL", 4096)
    model = tiny_model("qwen3", train={"default": "frozen", "llm": "lora"})
    with pytest.raises(ConfigError, match=rf"optim\.name is {name}, but {message}"):
        make_optimizer(model, OptimConfig(name=name))
    make_optimizer(model, OptimConfig())
