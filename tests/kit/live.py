"""How many bytes of tensors a real process holds: what a traced pass claims without running anything."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmms.train.batch.batch import Batch
from lmms.train.model.attention import Documents
from lmms.train.model.forward import TrainModel
from lmms.train.model.reference import reference_attention
from lmms.train.plan.trace import tensors_in

TOLERANCE = {torch.float32: 0.03, torch.bfloat16: 0.04}
"""Of the peak: FSDP2's own buffers come and go with its order of work; a CPU copies bf16 to fp32 for the loss."""


class LiveStorages(TorchDispatchMode):
    """The peak of all storages that exist, by their size after each operation: FSDP2 empties and fills its own."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in known:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, output)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        self.peak = max(self.peak, self.bytes_now())
        return output

    def bytes_now(self, but: Iterable[Tensor] = ()) -> int:
        """Bytes of the storages that exist now, without those of the tensors `but`."""
        others = {tensor.untyped_storage()._cdata for tensor in but}
        alive = [storage for ref in self._storages.values() if (storage := ref()) is not None]
        return sum(storage.nbytes() for storage in alive if storage._cdata not in others)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = weakref.ref(storage)


def kernel_attention(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """attention.varlen_attention on the CPU, keeping for backward what the GPU's kernel keeps."""
    bounds, _, scale, causal = documents
    output: Tensor = _KernelAttention.apply(query, key, value, bounds, scale, causal)
    return output


class _KernelAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
    ) -> Tensor:
        output = reference_attention(query, key, value, cu_seqlens, scale, causal).contiguous()
        log_sums = torch.empty(query.shape[1], query.shape[0])
        ctx.save_for_backward(query, key, value, cu_seqlens, output, log_sums)
        ctx.options = scale, causal
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, cu_seqlens, _, _ = ctx.saved_tensors
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            output = reference_attention(*leaves, cu_seqlens, *ctx.options)
        return (*torch.autograd.grad(output, leaves, grad), None, None, None)


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def kept_bytes(model: TrainModel, batch: Batch) -> int:
    """Bytes of all storages that a forward pass leaves for backward, but for weights and the batch."""
    others = [*model.parameters(), *model.buffers(), *tensors_in(batch)]
    with LiveStorages(()) as live:
        # Its graph holds what is kept.
        loss, _ = model(batch, batch.images > 0, step_has_sounds=batch.num_sounds > 0)
        return live.bytes_now([*others, loss])


def saved_bytes(model: TrainModel, batch: Batch) -> int:
    """`kept_bytes` of compiled blocks, by what autograd saves: a dispatch mode does not look into them."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), *tensors_in(batch))}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            saved[key] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch, batch.images > 0, step_has_sounds=batch.num_sounds > 0)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
