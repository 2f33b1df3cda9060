"""Muon's update is the formula's, on whole matrices, for the layers that it is meant for."""

import math

import pytest
import torch
from torch import Tensor, nn

from lmms.configs.settings.lora import LoraConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.train.model.names import parameter_name
from lmms.train.optim.groups import make_optimizer
from lmms.train.optim.muon import orthogonalised
from lmms.train.optim.rules import Updates, muon_line, stacked_matrices
from tests.kit.model.models import FAMILIES, SOUND_FAMILIES, tiny_model

LR, DECAY, MOMENTUM = 0.02, 0.1, 0.9


def reference(matrix: Tensor) -> Tensor:
    """What the iteration does to each singular value, in fp64: five times the polynomial."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / torch.linalg.vector_norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize("shape", [(1, 24, 24), (1, 16, 60), (1, 60, 16), (3, 20, 30)])
def test_singular_values_come_out_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrices)
    values = torch.linalg.svdvals(found)
    smallest = torch.linalg.svdvals(matrices).amin() / torch.linalg.matrix_norm(matrices).amax()
    assert smallest < 0.2
    assert 0.65 < float(values.min()) < float(values.max()) < 1.25
    for matrix, one in zip(matrices, found, strict=True):
        torch.testing.assert_close(one.double(), reference(matrix), rtol=0, atol=1e-4)


def test_nothing_stays_nothing() -> None:
    assert not orthogonalised(torch.zeros(2, 4, 3)).any()


@pytest.mark.parametrize("unit", [1e-36, 1e-25, 1e-12, 1e-8, 1e25])
def test_the_unit_of_the_gradients_is_all_the_same(unit: float) -> None:
    matrices = torch.randn(2, 20, 30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalised(matrices * unit), orthogonalised(matrices), rtol=0, atol=1e-4)


def test_two_updates_are_those_of_the_formula_each_matrix_of_a_stack_for_itself() -> None:
    model = tiny_model("qwen3_vl")
    stacked = stacked_matrices(model)
    assert set(stacked.values()) == {1, 3}
    optimizer = make_optimizer(
        model, OptimConfig(name="muon", lr={"default": LR}, weight_decay=DECAY, momentum=MOMENTUM)
    )
    expected = {parameter: parameter.detach().double() for parameter in stacked}
    averages = {parameter: torch.zeros_like(value) for parameter, value in expected.items()}
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        for parameter, number in stacked.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            averages[parameter] = MOMENTUM * averages[parameter] + parameter.grad.double()
            direction = parameter.grad.double() + MOMENTUM * averages[parameter]
            update = torch.cat([reference(matrix) for matrix in direction.chunk(number)])
            size = max(parameter.shape[0] // number, parameter.shape[1])
            expected[parameter] = (1 - LR * DECAY) * expected[parameter] - LR * 0.2 * math.sqrt(size) * update
        optimizer.step()
    for parameter, value in expected.items():
        torch.testing.assert_close(parameter.detach().double(), value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (32, 128), (256, 48)])
def test_a_step_is_as_large_as_one_of_adamw_whatever_the_shape(shape: tuple[int, int]) -> None:
    """The root mean square of AdamW's steps is 0.2 to 0.4 of the learning rate (Liu et al. 2025)."""
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    Updates(
        [{"params": [weight], "lr": 3.0, "weight_decay": 0.1, "momentum": 0.95, "rule": "muon", "stacked": 1}]
    ).step()
    assert 0.15 < float(weight.detach().square().mean().sqrt()) / 3.0 < 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_it_takes_the_matrices_of_the_blocks_and_nothing_else(family: str) -> None:
    model = tiny_model(family)
    optimizer = make_optimizer(model, OptimConfig(name="muon"))
    rule = {parameter: group["rule"] for group in optimizer.param_groups for parameter in group["params"]}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(rule) == len(trained)
    for name, parameter in trained.items():
        inside = ".layers." in name or ".blocks." in name
        assert rule[parameter] == ("muon" if inside and parameter.ndim == 2 else "adamw"), name
        assert optimizer.state[parameter].keys() == (
            {"momentum"} if rule[parameter] == "muon" else {"step", "exp_avg", "exp_avg_sq"}
        )
    line = muon_line(model)
    assert "llm q_proj" in line
    assert ("vision qkv" in line) == ("vl" in family)
    assert ("audio fc2" in line) == (family in SOUND_FAMILIES)
    assert not any(word in line for word in ("lm_head", "embed", "merger", "norm"))


def test_factors_of_lora_are_not_its() -> None:
    train: dict[str, object] = {"default": "frozen", "llm": "lora"}
    model = tiny_model("qwen3", train=train, lora=LoraConfig(rank=4, modules_to_save=("down_proj",)))  # type: ignore[arg-type]
    optimizer = make_optimizer(model, OptimConfig(name="muon"))
    names = {parameter: parameter_name(name) for name, parameter in model.named_parameters()}
    taken = {names[p] for group in optimizer.param_groups if group["rule"] == "muon" for p in group["params"]}
    assert taken == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)}
    assert "llm down_proj;" in muon_line(model)
