"""Computing parts of a block again in backward instead of keeping what they were in forward."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lmms.configs.memory import Recompute
from lmms.train.products import Products, policy


def recompute_blocks(blocks: Sequence[nn.Module], recompute: Recompute) -> None:
    """Have these blocks recompute in backward, in place: before they are compiled, offloaded and sharded.

    By an own forward: transformers' way ends where a block's forward is no longer that of its class.
    """
    if recompute == "none":
        return
    found: list[Any] = list(blocks)
    for block in found:
        block.forward = partial(_recomputed, block, recompute, block.forward)


def _recomputed(block: nn.Module, recompute: Recompute, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """forward(*args, **kwargs) of a block, which runs again in backward. Where no backward comes, nothing is kept.

    torch's checkpoint keeps the inputs also of a frozen block with nothing trained before it, such as a frozen tower's.
    """
    inputs = (arg for arg in args if isinstance(arg, Tensor))
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (*inputs, *block.parameters())):
        return forward(*args, **kwargs)
    if recompute == "full":
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    if torch.compiler.is_compiling():
        # The compiler knows these contexts, and takes no others.
        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
    products = Products(block)
    output = checkpoint(forward, *args, use_reentrant=False, context_fn=products.contexts, **kwargs)
    products.save()
    return output
