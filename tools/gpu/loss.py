"""A loss of the LM head in bf16 against fp32, with the gradients of its input and its weight; then time and memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.train.model.loss import LOGITS_PER_CHUNK
from tools.gpu.compare import Check, check, relative_error
from tools.gpu.losses import Loss, Where, loss_by
from tools.gpu.sizes import Sizes
from tools.gpu.timing import median_seconds

TOLERANCES = {"loss": 1e-3, "hidden": 1e-2, "weight": 1e-2}
"""The sum over the vocabulary is in fp32; the gradient of the logits is rounded to bf16 (2e-3) before its products."""
SHARES = (0.2, 1.0)
"""Of a pack's rows: targets of a pack with 60 % images, and all rows, as of a loss that computes ignored ones too."""
_CHECKED_ROWS = 2048
_VOCAB, _WIDTH = 151936, 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSpeed:
    """Forward and backward over so many rows."""

    rows: int
    seconds: float
    memory: int | None
    """Bytes at the peak beside what goes in; None without a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossFound:
    """What a loss came to. Only one that passed is timed."""

    name: str
    check: Check
    speeds: list[LossSpeed]
    passed: bool


def measure_loss(name: str, sizes: Sizes) -> Iterator[LossFound]:
    """The head of Qwen2.5-VL-3B and Qwen3-VL-2B (151,936 tokens, 2,048 wide), or a small one."""
    device = torch.device(sizes.device)
    vocab, width = (500, 32) if sizes.thin else (_VOCAB, _WIDTH)
    chunk = 16 * vocab if sizes.thin else LOGITS_PER_CHUNK
    loss = loss_by(name, Where(device=device, chunk=chunk, backend=sizes.backend))
    rows = 48 if sizes.thin else _CHECKED_ROWS
    compared = check_loss(loss, *_drawn(rows, width, vocab, device))
    found = LossFound(name=name, check=compared, speeds=[], passed=compared.passed)
    yield found
    for share in SHARES if found.passed else ():
        one = _speed(loss, *_drawn(int(share * sizes.seq_len), width, vocab, device), sizes.repeats)
        found.speeds.append(one)
        yield found


def check_loss(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Check:
    """Against torch's cross entropy in fp32."""
    summed = loss(hidden, weight, labels, weights) / len(labels)
    found = [summed.detach(), *torch.autograd.grad(summed, (hidden, weight))]
    h, w = (part.detach().float().requires_grad_() for part in (hidden, weight))
    exact = F.cross_entropy(h @ w.T, labels, reduction="sum") / len(labels)
    expected = [exact.detach(), *torch.autograd.grad(exact, (h, w))]
    errors = {name: relative_error(a, b) for name, a, b in zip(TOLERANCES, found, expected, strict=True)}
    return check(f"{len(labels)} rows", errors, TOLERANCES)


def _drawn(rows: int, width: int, vocab: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and weight in bf16 that want gradients, labels, and weights, all 1: libraries know no others."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, width, device=device, generator=generator).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(vocab, width, device=device, generator=generator)).bfloat16().requires_grad_()
    labels = torch.randint(vocab, (rows,), device=device, generator=generator)
    return hidden, weight, labels, torch.ones(rows, device=device)


def _speed(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, repeats: int) -> LossSpeed:
    def both() -> None:
        torch.autograd.grad(loss(hidden, weight, labels, weights), (hidden, weight))

    on_gpu = hidden.is_cuda
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(hidden.device)
        before = torch.cuda.memory_allocated(hidden.device)
    seconds = median_seconds(both, hidden.device, repeats)
    memory = torch.cuda.max_memory_allocated(hidden.device) - before if on_gpu else None
    return LossSpeed(rows=len(labels), seconds=seconds, memory=memory)
