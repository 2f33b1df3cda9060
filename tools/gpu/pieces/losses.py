"""Losses of the LM head in bf16: each against fp32 first, with both gradients, then its time and memory."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.train.model.loss import LOGITS_PER_CHUNK, group_sums, linear_cross_entropy
from tools.gpu.pieces.measuring import Check, check, median_seconds, relative_error
from tools.gpu.pieces.models import Sizes
from tools.gpu.processes import NotHereError

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(hidden [R, H], weight [V, H], labels [R], weights [R]) -> the weighted sum of cross entropies."""
CHUNKED: Mapping[str, float] = {"chunked": 1.0, "chunked, 1/8": 1 / 8, "chunked, 1/2": 1 / 2, "chunked, x 4": 4.0}
"""Form of the trainer's loss -> its chunk as a multiple of the usual chunk."""
WHOLE = ("whole", "whole, compiled")
"""Losses with all logits at once."""
PACKAGES: Mapping[str, tuple[str, str]] = {
    "liger": ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"),
    "cut": ("cut_cross_entropy", "linear_cross_entropy"),
}
"""Losses of packages: module and function. These losses have no weights."""
LOSSES: tuple[str, ...] = (*CHUNKED, *WHOLE, "torch", *PACKAGES)

TOLERANCES = {"loss": 1e-3, "hidden": 1e-2, "weight": 1e-2}
"""The sum over the vocabulary is in fp32; the gradient of the logits is rounded to bf16 (2e-3) before its products."""
_SHARES = (0.2, 1.0)
"""Shares of a pack's rows: targets of a pack with 60 % images, and all rows, as if ignored rows were computed too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSpeed:
    """Time and memory of forward and backward over `rows` rows."""

    rows: int
    seconds: float
    memory: int | None
    """Bytes at the peak without the inputs; None without a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossReport:
    """Result of a loss. Only a loss that passed is timed."""

    name: str
    check: Check
    speeds: list[LossSpeed]
    passed: bool


def measure_loss(name: str, sizes: Sizes) -> Iterator[LossReport]:
    """Measure a loss with the head of Qwen2.5-VL-3B and Qwen3-VL-2B (151,936 tokens, 2,048 wide), or a small head."""
    device = torch.device(sizes.device)
    checked, width, vocab = (48, 32, 500) if sizes.thin else (2048, 2048, 151936)
    loss = loss_by(name, device, chunk=16 * vocab if sizes.thin else LOGITS_PER_CHUNK, backend=sizes.backend)
    compared = check_loss(loss, *_drawn(checked, width, vocab, device))
    report = LossReport(name=name, check=compared, speeds=[], passed=compared.passed)
    yield report
    for share in _SHARES if report.passed else ():
        inputs = _drawn(int(share * sizes.seq_len), width, vocab, device)
        report.speeds.append(_speed(loss, *inputs, sizes.repeats))
        yield report


def loss_by(name: str, device: torch.device, *, chunk: int = LOGITS_PER_CHUNK, backend: str = "inductor") -> Loss:
    """The loss of this name in LOSSES. NotHereError if this machine cannot run it.

    chunk: logits of the usual chunk. backend: torch.compile's.
    """
    if name in CHUNKED:
        logits = max(int(chunk * CHUNKED[name]), 1)
        return lambda h, w, labels, weights: linear_cross_entropy(h, w, labels, weights, labels % 1, 1, logits)[0]
    if name in WHOLE:

        def whole(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            return whole_cross_entropy(hidden, weight, labels, weights, labels % 1, 1)[0]

        return torch.compile(whole, dynamic=False, backend=backend) if name == "whole, compiled" else whole
    module, function = ("torch.nn.functional", "linear_cross_entropy") if name == "torch" else PACKAGES[name]
    package = module.partition(".")[0]
    if name in PACKAGES and device.type != "cuda":
        raise NotHereError(f"{package} runs on a GPU")
    if not find_spec(package):
        raise NotHereError(f"the module {package} is not installed")
    summed = getattr(import_module(module), function, None)
    if summed is None:
        raise NotHereError(f"torch {torch.__version__} has no linear_cross_entropy")

    def unweighted(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        output = summed(hidden, weight, labels, reduction="sum")
        loss: Tensor = output[0] if isinstance(output, tuple) else output
        return loss

    return unweighted


def whole_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, groups: Tensor, num_groups: int
) -> tuple[Tensor, Tensor]:
    """The result of lmms's linear_cross_entropy, from all logits of the target rows at once and torch's autograd."""
    losses = F.cross_entropy((hidden @ weight.to(hidden.dtype).T).float(), labels, reduction="none") * weights
    return losses.sum(), group_sums(losses.detach(), weights, groups, num_groups)


def check_loss(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Check:
    """Check a loss against torch's cross entropy in fp32."""
    summed = loss(hidden, weight, labels, weights) / len(labels)
    computed = [summed.detach(), *torch.autograd.grad(summed, (hidden, weight))]
    h, w = (part.detach().float().requires_grad_() for part in (hidden, weight))
    exact = F.cross_entropy(h @ w.T, labels, reduction="sum") / len(labels)
    expected = [exact.detach(), *torch.autograd.grad(exact, (h, w))]
    errors = {name: relative_error(a, b) for name, a, b in zip(TOLERANCES, computed, expected, strict=True)}
    return check(f"{len(labels)} rows", errors, TOLERANCES)


def _drawn(rows: int, width: int, vocab: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states and weight in bf16 that want gradients, labels, and weights, all 1, as packages have none."""
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, width, device=device, generator=generator).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(vocab, width, device=device, generator=generator)).bfloat16().requires_grad_()
    labels = torch.randint(vocab, (rows,), device=device, generator=generator)
    return hidden, weight, labels, torch.ones(rows, device=device)


def _speed(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, repeats: int) -> LossSpeed:
    before = 0
    if hidden.is_cuda:
        torch.cuda.reset_peak_memory_stats(hidden.device)
        before = torch.cuda.memory_allocated(hidden.device)
    seconds = median_seconds(
        lambda: torch.autograd.grad(loss(hidden, weight, labels, weights), (hidden, weight)), hidden.device, repeats
    )
    memory = torch.cuda.max_memory_allocated(hidden.device) - before if hidden.is_cuda else None
    return LossSpeed(rows=len(labels), seconds=seconds, memory=memory)
