"""The chunked loss is the cross entropy of all logits, with its gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lmms.train.model.loss import linear_cross_entropy

ROWS, HIDDEN, VOCAB = 11, 8, 23
GROUPS = torch.tensor([0, 3, 3, 1, 0, 0, 3, 1, 0, 3, 1])
"""Of four groups the third is empty."""


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, dtype=torch.float64).to(dtype).requires_grad_()
    weights = torch.rand(ROWS, dtype=torch.float64)
    weights[3] = 0
    return hidden, weight, torch.randint(0, VOCAB, (ROWS,)), weights


def loss_of(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, logits_per_chunk: int = 10**9) -> Tensor:
    loss, _ = linear_cross_entropy(hidden, weight, labels, weights, GROUPS[: len(hidden)], 4, logits_per_chunk)
    return loss


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    losses = F.cross_entropy((hidden @ weight.T).double(), labels, reduction="none")
    return (weights * losses).sum()


@pytest.mark.parametrize("logits_per_chunk", [1, VOCAB, 4 * VOCAB, ROWS * VOCAB, 10**9])
def test_loss_and_gradients_in_fp64_for_any_chunk(logits_per_chunk: int) -> None:
    hidden, weight, labels, weights = inputs(torch.float64)
    found = loss_of(hidden, weight, labels, weights, logits_per_chunk)
    expected = plain(hidden, weight, labels, weights)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    ours = torch.autograd.grad(found / 3, (hidden, weight))
    theirs = torch.autograd.grad(expected / 3, (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_bf16_keeps_the_softmax_and_the_sum_in_fp32() -> None:
    hidden, weight, labels, weights = inputs(torch.bfloat16)
    found = loss_of(hidden, weight, labels, weights.float(), 2 * VOCAB)
    expected = plain(hidden.double(), weight.double(), labels, weights)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    ours = torch.autograd.grad(found, (hidden, weight))
    theirs = torch.autograd.grad(expected, (hidden, weight))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.double() - other).norm() / other.norm()) < 5e-3


def test_many_chunks_of_bf16_give_the_weights_gradient_rounded_once() -> None:
    torch.manual_seed(0)
    rows = 1024
    # No hidden value is below 0, so the sum grows until bf16 would lose what a row adds: 0.18 off, not 0.0017.
    hidden = torch.rand(rows, HIDDEN).bfloat16()
    weight = torch.randn(VOCAB, HIDDEN).bfloat16().requires_grad_()
    labels, weights, groups = torch.randint(0, VOCAB, (rows,)), torch.rand(rows), torch.zeros(rows, dtype=torch.int64)
    loss, _ = linear_cross_entropy(hidden, weight, labels, weights, groups, 1, logits_per_chunk=VOCAB)
    (found,) = torch.autograd.grad(loss, weight)
    leaf = weight.detach().double().requires_grad_()
    (exact,) = torch.autograd.grad(plain(hidden.double(), leaf, labels, weights.double()), leaf)
    assert found.dtype == torch.bfloat16
    rounded = float((exact.bfloat16() - exact).norm())
    assert float((found - exact).norm()) < 1.1 * rounded


def test_a_factor_is_applied_in_fp32() -> None:
    hidden, weight, labels, weights = inputs(torch.bfloat16)
    factor = 1 / 12289
    assert abs(float(torch.tensor(factor, dtype=torch.bfloat16)) / factor - 1) > 2e-3
    plain_loss, scaled_loss = (loss_of(hidden, weight, labels, weights.float()) for _ in range(2))
    (once,) = torch.autograd.grad(plain_loss, hidden)
    (scaled,) = torch.autograd.grad(scaled_loss * factor, hidden)
    assert torch.equal(scaled, (once.float() * factor).bfloat16())


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    values = inputs(torch.float64)
    values[frozen].requires_grad_(False)
    loss_of(*values).backward()
    assert values[frozen].grad is None
    other = values[1 - frozen].grad
    values[frozen].requires_grad_(True)
    (expected,) = torch.autograd.grad(plain(*values), values[1 - frozen])
    torch.testing.assert_close(other, expected)


def test_no_target_is_a_loss_of_0_with_gradients_of_0() -> None:
    hidden, weight, labels, weights = inputs(torch.float32)
    rows = torch.zeros(0, dtype=torch.int64)
    loss = loss_of(hidden[rows], weight, labels[rows], weights[rows].float())
    loss.backward()
    assert loss.item() == 0
    assert hidden.grad is not None
    assert weight.grad is not None
    assert not hidden.grad.any()
    assert not weight.grad.any()


def test_a_second_backward_is_an_error_and_not_a_wrong_gradient() -> None:
    loss = loss_of(*inputs(torch.float32))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        loss.backward()


@pytest.mark.parametrize("logits_per_chunk", [1, 4 * VOCAB, 10**9])
def test_the_loss_and_the_weight_of_each_group(logits_per_chunk: int) -> None:
    hidden, weight, labels, weights = inputs(torch.float32)
    loss, by_group = linear_cross_entropy(hidden, weight, labels, weights.float(), GROUPS, 4, logits_per_chunk)
    assert (by_group.dtype, by_group.shape) == (torch.float64, (4, 2))
    assert not by_group.requires_grad
    assert by_group[2].tolist() == [0, 0]
    for group in (0, 1, 3):
        rows = GROUPS.eq(group)
        expected = plain(hidden[rows].double(), weight.double(), labels[rows], weights[rows]).detach()
        assert float(by_group[group, 0]) == pytest.approx(float(expected), rel=1e-6)
        assert float(by_group[group, 1]) == pytest.approx(float(weights[rows].sum()), rel=1e-6)
    assert float(by_group[:, 0].sum()) == pytest.approx(float(loss.detach()), rel=1e-6)


def test_without_gradients_the_head_costs_one_product() -> None:
    values = inputs(torch.float32)
    product = 2 * ROWS * HIDDEN * VOCAB
    for chunk in (4 * VOCAB, 10**9):
        with FlopCounterMode(display=False) as counter:
            loss = loss_of(*values, chunk)
        assert counter.get_total_flops() > product
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            evaluated = loss_of(*values, chunk)
        assert counter.get_total_flops() == product
        assert torch.equal(evaluated, loss)
        assert not evaluated.requires_grad
    for value in values[:2]:
        value.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        loss_of(*values)
    assert counter.get_total_flops() == product
