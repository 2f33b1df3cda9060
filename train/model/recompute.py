"""Computing parts of a block again in backward instead of keeping their results from forward."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lmms.configs.settings.memory import Recompute

PRODUCTS = frozenset({"aten::mm", "aten::addmm"})
"""Operators of linear layers, which multiply their last two arguments."""

ATTENTIONS = frozenset(
    {
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_fused_attention_overrideable",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "lmms::documents_attention",
    }
)
"""Operators of the kernels in ATTENDS. Attention that torch puts together from products is computed again."""

_NARROW = 8
"""A product whose inner length is so many times shorter than its rows, such as LoRA's second product, is computed
again: that takes less time than reading the result."""

Address = tuple[int, int]
"""Storage and offset of a weight: the same for its transposed view, while weights may share a storage."""


def recompute_blocks(blocks: Sequence[nn.Module], recompute: Recompute) -> None:
    """Have these blocks recompute in backward, in place: before they are compiled, offloaded and sharded.

    Each block gets a new forward: transformers' way does not work for a block whose forward was replaced.
    """
    if recompute == "none":
        return
    modules: list[Any] = list(blocks)
    for block in modules:
        block.forward = partial(_recomputed, block, recompute, block.forward)


def _recomputed(block: nn.Module, recompute: Recompute, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """forward(*args, **kwargs) of a block, which runs again in backward. Where no backward comes, nothing is kept.

    torch's checkpoint would keep the inputs of a frozen block with nothing trained before it too, as in a frozen tower.
    """
    inputs = (arg for arg in args if isinstance(arg, Tensor))
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (*inputs, *block.parameters())):
        return forward(*args, **kwargs)
    if recompute == "full":
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    # The compiler finds unread results by itself.
    unread = None if torch.compiler.is_compiling() else _last_weight(block)
    contexts = partial(create_selective_checkpoint_contexts, partial(_policy, unread))
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _policy(unread: Address | None, context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Whether `elementwise` keeps the result of an operator. unread: the weight whose product nothing reads."""
    return CheckpointPolicy.MUST_SAVE if _keeps(operator, args, unread) else CheckpointPolicy.PREFER_RECOMPUTE


def _keeps(operator: Any, args: tuple[Any, ...], unread: Address | None) -> bool:
    name = operator.name()
    if name not in PRODUCTS:
        return name in ATTENTIONS
    right: Tensor = args[-1]
    if _NARROW * right.shape[0] <= right.shape[1]:
        return False
    return unread is None or _address(right) != unread


def _last_weight(block: Any) -> Address | None:
    """The address of the weight of a block's last product, which is only added to the block's input.

    None with LoRA around that layer: LoRA's products come after it, so backward would compute it again to reach them.
    """
    # The blocks of audio towers have the layers of their MLP side by side with all others.
    layers = getattr(block, "mlp", block).children()
    last = [child for child in layers if hasattr(child, "weight") and not isinstance(child, nn.LayerNorm)][-1]
    return _address(last.weight) if type(last) is nn.Linear else None


def _address(weight: Tensor) -> Address:
    return weight.untyped_storage()._cdata, int(weight.storage_offset())
