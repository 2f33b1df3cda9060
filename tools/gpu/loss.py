"""The loss of the LM head in bf16 against fp32, with the gradients of its input and its weight."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from lmms.train.loss import LOGITS_PER_CHUNK, linear_cross_entropy
from tools.gpu.compare import Check, check, relative_error

TOLERANCES = {"groups": 1e-4, "loss": 1e-4, "hidden": 1e-2, "weight": 1e-2}
"""The sum over the vocabulary is in fp32; the gradient of the logits is rounded to bf16 (2e-3) before its products."""


def check_loss() -> Iterator[Check]:
    """One check: on a GPU the head of both models (151,936 tokens of width 2,048) in three chunks, else a small one."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    rows, width, vocab, chunk = (4096, 2048, 151936, LOGITS_PER_CHUNK) if on_gpu else (48, 32, 500, 16 * 500)
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, width, device=device, generator=generator).bfloat16()
    weight = (0.02 * torch.randn(vocab, width, device=device, generator=generator)).bfloat16()
    labels = torch.randint(vocab, (rows,), device=device, generator=generator)
    weights = torch.randint(3, (rows,), device=device, generator=generator) / 2
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    groups = torch.randint(5, (rows,), device=device, generator=generator)
    summed, by_group = linear_cross_entropy(h, w, labels, weights, groups, 5, chunk)
    loss = summed / weights.sum()
    found = [by_group[:, 0].sum() / by_group[:, 1].sum(), loss.detach(), *torch.autograd.grad(loss, (h, w))]
    h, w = hidden.float().requires_grad_(), weight.float().requires_grad_()
    loss = (F.cross_entropy(h @ w.T, labels, reduction="none") * weights).sum() / weights.sum()
    expected = [loss.detach(), loss.detach(), *torch.autograd.grad(loss, (h, w))]
    errors = {name: relative_error(a, b) for name, a, b in zip(TOLERANCES, found, expected, strict=True)}
    yield check(f"loss, {rows} rows of {vocab} tokens", errors, TOLERANCES)
