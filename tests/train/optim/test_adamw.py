"""AdamW with averages in fp32, bf16 and 8 bits: each update is the formula's, and a model learns as with fp32."""

import copy
from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

import lmms.train.optim.adamw
import lmms.train.optim.rules
from lmms.configs.settings.optim import OptimConfig, OptimName
from lmms.train.optim.adamw import new_averages, update_adamw, update_small
from lmms.train.optim.eight_bit import dequantize
from lmms.train.optim.groups import make_optimizer
from tests.kit.model.models import joined, make_pack, talk, tiny_model, tiny_recipe

RULES: tuple[OptimName, ...] = ("adamw", "adamw-bf16", "adamw-8bit")
SHAPES = [(40, 300), (3, 2, 2, 90), (64, 16)]
GROUP = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
(BETA1, BETA2), EPS, KEPT = (0.8, 0.9), 1e-6, 1 - 0.01 * 0.2


def step(rule: OptimName, parameters: Sequence[nn.Parameter], states: Sequence[dict[str, Tensor]]) -> None:
    with torch.no_grad():
        if rule == "adamw":
            update_adamw(parameters, states, GROUP)
        else:
            update_small(rule, parameters, states, GROUP)


def averages(rule: OptimName, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What is stored, in fp64."""
    if rule != "adamw-8bit":
        return state["exp_avg"].double(), state["exp_avg_sq"].double()
    first = dequantize(state["exp_avg_codes"], state["exp_avg_scales"], signed=True)
    root = dequantize(state["exp_avg_sq_codes"], state["exp_avg_sq_scales"], signed=False)
    return first.double(), root.double().square()


@pytest.mark.parametrize("rule", RULES)
def test_each_update_is_that_of_the_formula_on_the_averages_that_are_stored(rule: OptimName) -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    states = [new_averages(rule, parameter) for parameter in parameters]
    for number in range(1, 6):
        expected, kept = [], []
        for parameter, state in zip(parameters, states, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=generator) ** 3
            gradient = parameter.grad.double()
            first, second = averages(rule, state)
            first = BETA1 * first + (1 - BETA1) * gradient
            second = BETA2 * second + (1 - BETA2) * gradient**2
            root = (second / (1 - BETA2**number)).sqrt() + EPS
            expected.append(KEPT * parameter.detach().double() - 0.01 * first / (1 - BETA1**number) / root)
            kept.append((first, second.sqrt()))
        step(rule, parameters, states)
        for parameter, state, value, (first, root) in zip(parameters, states, expected, kept, strict=True):
            torch.testing.assert_close(parameter.detach().double(), value, rtol=1e-5, atol=1e-6)
            assert float(state["step"]) == number
            stored = averages(rule, state)
            # bf16 is off by at most its step, a code by the widest gap, of the block's largest; here of all.
            for found, exact in ((stored[0], first), (stored[1].sqrt(), root)):
                error = {"adamw": 1e-6, "adamw-bf16": 0.0079}.get(rule, 0.0143)
                assert ((found - exact).abs() <= error * exact.abs().max()).all()


def test_a_weight_whose_gradient_is_small_beside_its_block_takes_no_giant_step() -> None:
    """Codes of the squares' average itself would be 0 for it, and eps alone would divide its step."""
    weight = nn.Parameter(torch.zeros(1, 256))
    state = new_averages("adamw-8bit", weight)
    size = torch.logspace(-6, 0, 256)
    for number in range(20):
        weight.grad = (size * (-1) ** number if number % 3 else size)[None]
        before = weight.detach().clone()
        step("adamw-8bit", [weight], [state])
        assert float((weight.detach() - before).abs().max()) < 5 * GROUP["lr"]  # type: ignore[operator]


def test_a_weight_whose_gradients_end_takes_small_steps_until_its_averages_are_gone() -> None:
    """The squares' root falls to the least code of the block, which another keeps large.

    So near the least codes a step is at most some times the learning rate, as codes of the averages are factors apart.
    """
    weight = nn.Parameter(torch.zeros(1, 256))
    state = new_averages("adamw-8bit", weight)
    group = GROUP | {"betas": (0.9, 0.99), "eps": 1e-12, "weight_decay": 0.0}
    moved, generator = list[float](), torch.Generator().manual_seed(0)
    for number in range(600):
        weight.grad = torch.randn(1, 256, generator=generator)
        weight.grad[0, 1:] *= 1e-6 if number < 100 else 0.0
        before = weight.detach().clone()
        with torch.no_grad():
            update_small("adamw-8bit", [weight], [state], group)
        moved.append(float((weight.detach() - before)[0, 1:].abs().max()))
    largest, last = max(moved), max(moved[300:])
    assert largest < 0.1
    assert last == 0.0
    assert (state["exp_avg_sq_codes"][0, 1:] == 1).all()


@pytest.mark.parametrize("rule", RULES[1:])
def test_work_in_smaller_pieces_gives_the_same_bits(rule: OptimName, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    pieces = copy.deepcopy(whole)
    for parameters, at_once in ((whole, 2**24), (pieces, 1000)):
        monkeypatch.setattr(lmms.train.optim.adamw, "_AT_ONCE", at_once)
        states = [new_averages(rule, parameter) for parameter in parameters]
        for seed in range(3):
            noise = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=noise)
            step(rule, parameters, states)
    assert all(torch.equal(one, other) for one, other in zip(whole, pieces, strict=True))


def test_every_optimizer_learns_a_small_task_and_few_bits_learn_it_as_adamw_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lmms.train.optim.rules, "SMALL", 0)
    batch = joined([make_pack([talk(seed, 30) for seed in range(3)])], tiny_recipe("qwen3"))
    losses: dict[str, list[float]] = {}
    for name in get_args(OptimName):
        model = tiny_model("qwen3")
        optimizer = make_optimizer(model, OptimConfig(name=name, lr={"default": 3e-3}, weight_decay=0.0))
        for _ in range(40):
            loss, _ = model(batch, False)
            (loss / float(batch.weight)).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.setdefault(name, []).append(float(loss.detach()) / float(batch.weight))
    first, last = losses["adamw"][0], {name: of_name[-1] for name, of_name in losses.items()}
    assert last["adamw"] < 0.5 * first
    assert last["adamw-bf16"] == pytest.approx(last["adamw"], rel=0.005)
    assert last["adamw-8bit"] == pytest.approx(last["adamw"], rel=0.02)
    assert last["muon"] < 0.1 * first
    assert len(set(last.values())) == 4


@pytest.mark.parametrize(("name", "loss", "weights"), [("adamw-bf16", 0.01, 0.02), ("adamw-8bit", 0.04, 0.05)])
def test_with_a_slow_constant_few_bits_go_where_adamw_goes(
    name: OptimName, loss: float, weights: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmms.train.optim.rules, "SMALL", 0)
    packs = [make_pack([talk(3 * k + seed, 30) for seed in range(3)]) for k in range(4)]
    batches = [joined([pack], tiny_recipe("qwen3")) for pack in packs]
    found: list[tuple[list[float], Tensor]] = []
    for one in ("adamw", name):
        model = tiny_model("qwen3")
        start = nn.utils.parameters_to_vector(model.parameters()).detach()
        optimizer = make_optimizer(
            model, OptimConfig(name=one, lr={"default": 1e-3}, weight_decay=0.0, betas=(0.9, 0.999))
        )
        losses = []
        for number in range(120):
            batch = batches[number % 4]
            total, _ = model(batch, False)
            (total / float(batch.weight)).backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(total.detach()) / float(batch.weight))
        found.append((losses, nn.utils.parameters_to_vector(model.parameters()).detach() - start))
    (expected, way), (losses, other) = found
    assert expected[-1] < 0.2 * expected[0]
    assert max(abs(b / a - 1) for a, b in zip(expected, losses, strict=True)) < loss
    assert 0 < float((other - way).norm()) < weights * float(way.norm())
