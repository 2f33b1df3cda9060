"""The ways to a loss that are compared: from hidden states and the head's weight to a scalar with both gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.train.model.loss import group_sums, linear_cross_entropy
from tools.gpu.errors import NotHereError

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(hidden [R, H], weight [V, H], labels [R], weights [R]) -> the weighted sum of cross entropies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """What a loss is made for."""

    device: torch.device
    chunk: int
    """Logits of a chunk."""
    backend: str
    """Of torch.compile."""


def loss_by(name: str, where: Where) -> Loss:
    """The loss of this name in LOSSES. NotHereError where it cannot be had."""
    return LOSSES[name](where)


def whole_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor,
    groups: Tensor,
    num_groups: int,
) -> tuple[Tensor, Tensor]:
    """As linear_cross_entropy of lmms, with all logits of the target rows at once and torch's own autograd."""
    losses = F.cross_entropy((hidden @ weight.to(hidden.dtype).T).float(), labels, reduction="none") * weights
    return losses.sum(), group_sums(losses.detach(), weights, groups, num_groups)


def _chunked(times: float, where: Where) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, labels, weights, labels % 1, 1, max(int(where.chunk * times), 1))[0]

    return loss


def _whole(where: Where) -> Loss:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return whole_cross_entropy(hidden, weight, labels, weights, labels % 1, 1)[0]

    return loss


def _compiled(where: Where) -> Loss:
    return torch.compile(_whole(where), dynamic=False, backend=where.backend)


def _torch(where: Where) -> Loss:
    function = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise NotHereError(f"torch {torch.__version__} has no linear_cross_entropy")

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        summed: Tensor = function(hidden, weight, labels, reduction="sum")
        return summed

    return loss


def _liger(where: Where) -> Loss:
    _need("liger_kernel", where)
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        found = liger_fused_linear_cross_entropy(hidden, weight, labels, reduction="sum")
        summed: Tensor = found[0] if isinstance(found, tuple) else found
        return summed

    return loss


def _cut(where: Where) -> Loss:
    _need("cut_cross_entropy", where)
    from cut_cross_entropy import linear_cross_entropy as cut_cross_entropy

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        summed: Tensor = cut_cross_entropy(hidden, weight, labels, reduction="sum")
        return summed

    return loss


def _need(module: str, where: Where) -> None:
    if where.device.type != "cuda":
        raise NotHereError(f"{module} runs on a GPU")
    if not find_spec(module):
        raise NotHereError(f"the module {module} is not installed")


LOSSES: Mapping[str, Callable[[Where], Loss]] = {
    "chunked": partial(_chunked, 1.0),
    "chunked, 1/8": partial(_chunked, 1 / 8),
    "chunked, 1/2": partial(_chunked, 1 / 2),
    "chunked, x 4": partial(_chunked, 4.0),
    "whole": _whole,
    "whole, compiled": _compiled,
    "torch": _torch,
    "liger": _liger,
    "cut": _cut,
}
"""chunked is the trainer's, with its own chunk and others; whole holds all logits; the rest are libraries'."""
