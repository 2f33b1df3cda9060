"""Cross entropy of the LM head over the rows that are targets, without ever holding all their logits.

A 16k pack and a vocabulary of 152k are 10 GB of fp32 logits, and as much again for their gradient. Here the rows go
through the head in chunks, and each chunk's gradient is computed at once, while its logits are there: the loss is the
end of the graph, so backward adds a factor only. Same idea: Liger Kernel's fused linear cross entropy, which computes
ignored rows too and synchronises.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGITS_PER_CHUNK = 2**28
"""1 GiB in fp32: so large that reading and writing the weight's gradient for each chunk costs little."""

HeadLoss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""A loss with the arguments of linear_cross_entropy, without the size of its chunks."""


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    groups: Tensor,
    num_groups: int,
    logits_per_chunk: int = LOGITS_PER_CHUNK,
) -> tuple[Tensor, Tensor]:
    """Sum over rows of weights * cross_entropy(hidden @ weight.T, labels), a scalar of at least fp32; and by group.

    hidden float [R, H], weight float [V, H], labels int64 [R] in [0, V), weights float [R], groups int64 [R] in
    [0, num_groups). The second value is float64 [num_groups, 2], without gradient: each group's sum of weights * cross
    entropy, and of weights. The product is taken in the type of `hidden`, the softmax and the sum over chunks of the
    weight's gradient in fp32. R may be 0: the loss is 0 with gradients 0. Backward once; under no_grad no gradient is
    computed.
    """
    if not torch.is_grad_enabled():
        # In forward of a Function gradients are always off, so the Function asks its inputs.
        hidden, weight = hidden.detach(), weight.detach()
    rows = max(1, logits_per_chunk // weight.shape[0])
    loss, by_group = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, labels, weights, groups, num_groups, rows
    )
    return loss, by_group


def group_sums(losses: Tensor, weights: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """float64 [num_groups, 2]: each group's sum of losses [R], and of weights [R]."""
    sums = torch.zeros(num_groups, 2, dtype=torch.float64, device=losses.device)
    return sums.index_add_(0, groups, torch.stack([losses, weights], dim=1).double())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor,
        groups: Tensor,
        num_groups: int,
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        head = weight.to(hidden.dtype)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=exact) if ctx.needs_input_grad[1] else None
        loss = torch.zeros((), dtype=exact, device=hidden.device)
        by_group = torch.zeros(num_groups, 2, dtype=torch.float64, device=hidden.device)
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            label, scale = labels[part].unsqueeze(1), weights[part].to(exact).unsqueeze(1)
            logits = _matmul(hidden[part], head.T, exact)
            log_norm = logits.logsumexp(dim=1, keepdim=True)
            log_prob = logits.gather(1, label) - log_norm
            losses = -scale * log_prob
            loss += losses.sum()
            by_group += group_sums(losses.squeeze(1), scale.squeeze(1), groups[part], num_groups)
            if hidden_grad is None and weight_grad is None:
                continue
            # softmax - one_hot, in place of the logits
            grad = logits.sub_(log_norm).exp_().scatter_(1, label, log_prob.exp() - 1).mul_(scale).to(hidden.dtype)
            if hidden_grad is not None:
                torch.mm(grad, head, out=hidden_grad[part])
            if weight_grad is not None:
                _add_matmul(weight_grad, grad.T, hidden[part])
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(by_group)
        ctx.weight_dtype = weight.dtype
        return loss, by_group

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        factor, _ = grad_outputs
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            # In fp32: a factor such as 1 / 12289 would lose its digits in bf16.
            hidden_grad = (hidden_grad.to(factor.dtype) * factor).to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = weight_grad.mul_(factor).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None, None


def _matmul(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b, summed and returned in `dtype`."""
    if a.dtype == dtype:
        return a @ b
    if a.is_cuda or a.is_meta:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, summed in the type of `total`."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda or a.is_meta:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(a.to(total.dtype), b.to(total.dtype))
