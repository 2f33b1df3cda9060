"""One rank alone: no FSDP2, which would gather from nobody and yet copy.

On one rank FSDP2 copies each weight, frozen weights too, twice for each forward and each backward, and each gradient
three times on its way to fp32. Here the weights stay where they are. Of weights that are not kept in the compute type
(the fp32 masters), the modules have copies in the compute type during a pass, block by block as FSDP2 would; gradients
of the copies are added to the gradients of the masters, copy by copy. The numbers are those of FSDP2 to the bit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.utils._pytree import tree_leaves

_ALIGNED = 64
"""Elements: copies of one block lie in one storage, and kernels want them to begin at round addresses."""

Owner = tuple[nn.Module, str]
"""A module, and the name of a parameter that is directly in the module."""


class Copies:
    """The copies of one model's weights. The modules have the masters between passes, and the copies within a pass."""

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], dtype: torch.dtype, reshard: bool) -> None:
        """To be made before the model has memory; nothing is copied where every weight is kept in `dtype`.

        reshard: free a block's copies after its forward, and make them again in backward, as FSDP2 does.
        """
        self._reshard = reshard
        inner = {module for block in blocks for module in block.modules()}
        self._root = _Unit([module for module in model.modules() if module not in inner], dtype)
        self._blocks = [_Unit(list(block.modules()), dtype) for block in blocks]
        self._in_pass = False
        """Whether the modules have the copies."""
        self._backward = False
        """Whether backward has begun, and will release at its end."""
        if not any(unit.places for unit in (self._root, *self._blocks)):
            return
        model.register_forward_pre_hook(lambda *_: self._begin())
        for block, unit in zip(blocks, self._blocks, strict=True):
            if unit.places:
                block.register_forward_pre_hook(partial(self._before, unit))
                block.register_forward_hook(partial(self._after, unit))

    def release(self) -> None:
        """Give the modules their masters back and free the copies. Backward does it at its end."""
        if self._in_pass:
            for unit in (self._root, *self._blocks):
                unit.put(unit.masters)
                unit.free()
        self._in_pass = self._backward = False

    def _begin(self) -> None:
        # After a pass without backward the weights may have changed.
        self.release()
        self._in_pass = True
        for unit in (self._root, *self._blocks):
            unit.make(self._add_to_master)
            unit.put(unit.copies)
        self._root.fill()

    def _before(self, unit: "_Unit", *_: Any) -> None:
        unit.fill()

    def _after(self, unit: "_Unit", module: nn.Module, args: Any, output: Any) -> None:
        # A block that is recomputed comes here in backward, which needs its copies right after.
        if not self._reshard or self._backward:
            return
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(partial(self._before_backward, unit))  # type: ignore[no-untyped-call]
        # Backward starts with the last block.
        if unit is not self._blocks[-1] or not torch.is_grad_enabled():
            unit.free()

    def _before_backward(self, unit: "_Unit", grad: Tensor) -> None:
        self._release_later()
        if unit.filled:
            return
        for other in self._blocks:
            other.free()
        unit.fill()

    def _add_to_master(self, master: nn.Parameter, copy: Tensor) -> None:
        """Move the gradient of a copy to its master, in the type of the master."""
        self._release_later()
        grad, copy.grad = copy.grad, None
        assert grad is not None
        if master.grad is None:
            master.grad = grad.to(master.dtype)
        else:
            master.grad += grad

    def _release_later(self) -> None:
        if not self._backward:
            self._backward = True
            Variable._execution_engine.queue_callback(self.release)


class _Unit:
    """The copies that are made and freed together. Tied weights have one copy."""

    def __init__(self, modules: Sequence[nn.Module], dtype: torch.dtype) -> None:
        tied: dict[nn.Parameter, list[Owner]] = {}
        for module in modules:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dtype != dtype:
                    tied.setdefault(parameter, []).append((module, name))
        self.places = list(tied.values())
        self.filled = False
        self.masters: list[nn.Parameter] = []
        self.copies: list[nn.Parameter] = []
        self._dtype = dtype
        self._storage: torch.UntypedStorage | None = None
        self._size = 0

    def make(self, arrived: Callable[[nn.Parameter, Tensor], None]) -> None:
        """Make the copies, still without memory, once; not earlier, since a model that gets memory gets new parameters.

        arrived: called with a master and its copy when the copy has a gradient.
        """
        if self.copies or not self.places:
            return
        self.masters = [module._parameters[name] for ((module, name), *_) in self.places]  # type: ignore[misc]
        ends = [0]
        for master in self.masters:
            ends.append(ends[-1] + -(-master.numel() // _ALIGNED) * _ALIGNED)
        whole = torch.empty(ends[-1], dtype=self._dtype, device=self.masters[0].device)
        self._storage, self._size = whole.untyped_storage(), whole.untyped_storage().nbytes()
        for master, start in zip(self.masters, ends, strict=False):
            view = whole[start : start + master.numel()].view_as(master)
            copy = nn.Parameter(view, requires_grad=master.requires_grad)
            if copy.requires_grad:
                copy.register_post_accumulate_grad_hook(partial(arrived, master))  # type: ignore[no-untyped-call]
            self.copies.append(copy)
        self.filled = True
        self.free()

    def put(self, parameters: Sequence[nn.Parameter]) -> None:
        """Let the modules have these parameters."""
        for places, parameter in zip(self.places, parameters, strict=True):
            for module, name in places:
                module._parameters[name] = parameter

    def fill(self) -> None:
        """Copy the masters as they are now, if the copies are not filled."""
        if self.filled or self._storage is None:
            return
        self._storage.resize_(self._size)
        # Aliases: autograd must not take this for a change of what it saved, since the numbers are the same.
        torch._foreach_copy_([copy.data for copy in self.copies], [master.data for master in self.masters])
        self.filled = True

    def free(self) -> None:
        """Free the copies' memory; what autograd saved of the copies has memory again when they are filled."""
        if self.filled and self._storage is not None:
            self._storage.resize_(0)
            self.filled = False
