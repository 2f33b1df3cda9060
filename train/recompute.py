"""Recomputing blocks in backward instead of keeping what they computed in forward."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """forward(*args, **kwargs) of a block, which runs again in backward. Where no backward comes, nothing is kept.

    torch's checkpoint keeps the inputs also of a frozen block with nothing trained before it, such as a frozen tower's.
    """
    inputs = (arg for arg in args if isinstance(arg, Tensor))
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (*inputs, *block.parameters())):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
