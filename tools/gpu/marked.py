"""Marks among the kernels of a step, around its loss and its optimizer: tiny kernels that a step has nowhere else.

What stands between two marks belongs to one of the two, whatever its kernels are called. Of the loss that is forward
and backward, wherever gradients are taken; of the optimizer the norms of the gradients, clipping and the update.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from lmms.train.watch.marks import Mark

MARKS: Mapping[str, Literal["loss", "optimizer"]] = {"erfinv": "loss", "erfc": "optimizer"}
"""What the names of the marks' kernels hold -> what they stand around."""
OF_LOSS, OF_OPTIMIZER = 4, 2
"""Marks of a pass, and of a step."""


@contextmanager
def marked(optimizer: torch.optim.Optimizer, loss_at: str, device: torch.device) -> Iterator[Mark]:
    """Within it marks are set by steps that are given this Mark (see train/step.py).

    loss_at: dotted name of the function that computes the loss, "" where there is none to mark.
    """
    spot = torch.zeros(1, device=device)

    def mark(path: str) -> None:
        if path == "norms":
            _set(torch.erfc, spot)

    hook = optimizer.register_step_post_hook(lambda *_: _set(torch.erfc, spot))
    with _loss_marked(loss_at, spot):
        yield mark
    hook.remove()


def _loss_marked(loss_at: str, spot: Tensor) -> AbstractContextManager[object]:
    if not loss_at:
        return nullcontext()
    module, _, name = loss_at.rpartition(".")
    plain = getattr(__import__(module, fromlist=[name]), name)
    return patch(loss_at, partial(_between_marks, plain, spot))


def _between_marks(plain: Callable[..., Any], spot: Tensor, *args: Any, **kwargs: Any) -> Any:
    """plain(*args, **kwargs), a loss or a tuple that begins with one."""
    # Backward comes to what was last first.
    trained = [i for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.requires_grad]
    inputs = list(args)
    if trained:
        for i, value in zip(trained, _Mark.apply(spot, *(args[i] for i in trained)), strict=True):  # type: ignore[no-untyped-call]
            inputs[i] = value
    _set(torch.erfinv, spot)
    output = plain(*inputs, **kwargs)
    _set(torch.erfinv, spot)
    if not isinstance(output, tuple):
        return _Mark.apply(spot, output)[0]  # type: ignore[no-untyped-call]
    return _Mark.apply(spot, output[0])[0], *output[1:]  # type: ignore[no-untyped-call]


class _Mark(torch.autograd.Function):
    """Tensors as they are; backward sets a mark of the loss when all of their gradients are there."""

    @staticmethod
    def forward(ctx: Any, spot: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.spot = spot
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _set(torch.erfinv, ctx.spot)
        return None, *grads


def _set(kernel: Callable[[Tensor], Tensor], spot: Tensor) -> None:
    with torch.no_grad():
        kernel(spot)
