"""Computing parts of a block again in backward instead of keeping what they were in forward."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from lmms.configs.settings.memory import Recompute


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


PRODUCTS = frozenset({"aten::mm", "aten::addmm"})
"""Operators of linear layers: their last two arguments are multiplied."""


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
"""Operators of the kernels in attention.py. Attention that torch puts together of products is computed again."""


_NARROW = 8
"""A product whose inner length is so many times shorter than its rows, such as LoRA's second, is computed again: that
takes less than to read the result."""


class Products:
    """The kept results of one call of a block, from its forward to its backward."""

    def __init__(self, block: nn.Module) -> None:
        """Call it within the block's forward, where its weights are those that it computes with."""
        self.results: deque[Any] = deque()
        self.unread = _last_weight(block)
        self._node: Any = None
        self._shape: Any = None

    def contexts(self) -> tuple[TorchDispatchMode, TorchDispatchMode]:
        """For torch.utils.checkpoint: of forward, and of its repetition in backward."""
        return _Keep(self), _Take(self)

    def save(self) -> None:
        """Give what was kept to autograd, whose hooks may put it elsewhere until `load`."""
        leaves, spec = tree_flatten(list(self.results))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._shape = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves], spec
        self._node = _Saved.apply(torch.empty(0, requires_grad=True), *tensors).grad_fn  # type: ignore[no-untyped-call]
        self.results.clear()

    def load(self) -> None:
        """Take it back; from here on each result is held until it is read."""
        others, spec = self._shape
        tensors = iter(self._node.saved_tensors)
        self._node = None
        self.results.extend(tree_unflatten([next(tensors) if other is None else other[0] for other in others], spec))


def keeps(operator: Any, args: tuple[Any, ...], unread: tuple[int, int] | None = None) -> bool:
    """Whether the result of an operator is kept. unread: the place of a weight whose product nothing reads."""
    name = operator.name()
    if name not in PRODUCTS:
        return name in ATTENTIONS
    right: Tensor = args[-1]
    if _NARROW * right.shape[0] <= right.shape[1]:
        return False
    return unread is None or _place(right) != unread


def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """`keeps`, for torch's selective checkpointing."""
    return CheckpointPolicy.MUST_SAVE if keeps(operator, args) else CheckpointPolicy.PREFER_RECOMPUTE


class _Keep(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Forward: keeps results."""

    def __init__(self, products: Products) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = products

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if keeps(func, args, self.products.unread):
            # Autograd will tie the tensor itself to the graph.
            self.products.results.append(tree_map_only(Tensor, Tensor.detach, output))
        return output


class _Take(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Its repetition: computes all but what was kept."""

    def __init__(self, products: Products) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products = products

    def __enter__(self) -> Any:
        self.products.load()
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *raised: Any) -> None:
        self.products.results.clear()
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if keeps(func, args, self.products.unread):
            return tree_map_only(Tensor, Tensor.detach, self.products.results.popleft())
        return func(*args, **(kwargs or {}))


class _Saved(torch.autograd.Function):
    """A node that holds tensors as any of autograd's does, and is no part of a graph."""

    @staticmethod
    def forward(ctx: Any, empty: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return empty.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise AssertionError("nothing comes after this node")


def _last_weight(block: Any) -> tuple[int, int] | None:
    """The place of the weight of a block's last product, which is only added to what is passed on.

    None with LoRA around that layer: its own products come after it, so that backward would do it again to reach them.
    """
    last = [child for child in block.mlp.children() if hasattr(child, "weight")][-1]
    return _place(last.weight) if type(last) is nn.Linear else None


def _place(weight: Tensor) -> tuple[int, int]:
    """Storage and offset, which a transposed view shares: several weights may lie in one storage."""
    return weight.untyped_storage()._cdata, int(weight.storage_offset())
