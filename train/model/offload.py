"""Activations in main memory between forward and backward: `memory.offload_activations_gb`.

What a block saves for backward goes out while later blocks compute, and comes back while the block after it is in
backward, on a separate stream, without ever waiting on the CPU. What is saved first goes first, since it would lie
longest on the device. When the room is full, the rest stays; so does what the last block saves, since backward starts
with that block. Whole storages are moved, each a single time: memory is freed by storages, and tensors share storages.

torchtune (OffloadActivations) and Megatron-LM (fine-grained activation offloading) do it by tensor and by module.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

from lmms.configs.errors import ConfigError
from lmms.configs.settings.memory import check_activations

LEAST_BYTES = 2**20
"""Smaller storages stay: to start their copy takes longer than the copy."""

_ALIGNED = 512
"""The bytes of a storage begin at a multiple of this in main memory, as on the device."""

Copy = Callable[[Tensor, Tensor], Callable[[], None]]
"""Starts a copy of (target, source), flat uint8; returns a call that makes the computation wait for that copy."""


def pinned_room(size: int, device: torch.device) -> Tensor:
    """Main memory that a GPU copies to and from by itself, uint8 [size]. ConfigError without a GPU or that memory."""
    check_activations(size, device.type)
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    try:
        # torch's pinned memory comes in powers of two.
        room = torch.empty(size, dtype=torch.uint8)
        code = int(runtime.cudaHostRegister(room.data_ptr(), size, 0))
        fault = f"CUDA error {code}" if code else ""
    except RuntimeError as error:
        fault = " ".join(str(error).split())
    if fault:
        raise ConfigError(
            f"memory.offload_activations_gb is {size / 1e9:g}, but so much main memory cannot be pinned for each rank"
            f" of this machine ({fault}); set it lower, or raise the limit of locked memory (ulimit -l)"
        )
    weakref.finalize(room.untyped_storage(), runtime.cudaHostUnregister, room.data_ptr()).atexit = False
    return room


def copy_on_stream(device: torch.device) -> Copy:
    """Copies of a GPU on a separate stream; a copy starts after all that was computed before the call."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(target: Tensor, source: Tensor) -> Callable[[], None]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            target.copy_(source, non_blocking=True)
        done = stream.record_event()
        return lambda: torch.cuda.current_stream().wait_event(done)

    return copy


def copy_at_once(target: Tensor, source: Tensor) -> Callable[[], None]:
    """A copy for places where nothing runs next to the computation: tensors without values, and tests."""
    target.copy_(source)
    return _nothing


def offload_blocks(
    model: nn.Module, blocks: Sequence[nn.Module], room: Tensor, copy: Copy, least: int
) -> Callable[[], int]:
    """Have these blocks, in the order in which they run, save into `room` what backward needs, in place.

    To be called after recompute_blocks and compile_blocks, before sharding. room: uint8 [bytes]; least: bytes of the
    smallest storage that goes out. A pass begins with the forward of `model`; its backward ends before the next pass
    begins. Returns a call that tells how many bytes of the room the pass has taken so far.
    """
    offload = _Offload(room, copy, least)
    model.register_forward_pre_hook(lambda *_: offload.begin())
    modules: list[Any] = list(blocks)
    for block in modules:
        block.forward = partial(offload.run, block, block.forward, goes=block is not modules[-1])
    return lambda: offload.used


@dataclass(slots=True, eq=False)
class _Stored:
    """A storage that went out."""

    host: Tensor
    device: Tensor | None
    """The same bytes on the device, while they are there."""
    arrive: Callable[[], None]
    """Makes the computation wait for the copy that is under way, in either direction."""
    readers: int = 0
    """Tensors that backward has not asked for yet."""


@dataclass(slots=True, eq=False)
class _Call:
    """One block's forward in the pass."""

    before: "_Call | None"
    stored: dict[int, _Stored] = field(default_factory=dict)
    """Address of a storage -> its copy; no other storage gets the address while the bytes are on their way out."""
    reached: bool = False
    """Whether backward has come to this block."""


class _Offload:
    """The room, and the pass that fills it."""

    def __init__(self, room: Tensor, copy: Copy, least: int) -> None:
        self.room = room
        self.copy = copy
        self.least = least
        self.begin()

    def begin(self) -> None:
        """Begin a new pass."""
        self.used = 0
        self.newest: _Call | None = None

    def run(self, block: nn.Module, forward: Callable[..., Any], *args: Any, goes: bool, **kwargs: Any) -> Any:
        """forward(*args, **kwargs) of a block. goes: whether anything may go out."""
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        self.newest = call = _Call(self.newest)
        # Weights stay in memory anyway, and keyword arguments are for all blocks: rotations, boundaries.
        others = (*block.parameters(), *block.buffers(), *tree_leaves(kwargs))
        stays = {tensor.untyped_storage()._cdata for tensor in others if isinstance(tensor, Tensor)} if goes else None
        with saved_tensors_hooks(partial(self._pack, call, stays), _bring):
            output = forward(*args, **kwargs)
        # The copies had the time of this block.
        for stored in call.before.stored.values() if call.before else ():
            stored.arrive()
            stored.device = None
        return output

    def _pack(self, call: _Call, stays: set[int] | None, tensor: Tensor) -> Callable[[], Tensor]:
        storage = tensor.untyped_storage()
        stored = call.stored.get(storage._cdata)
        if stored is None:
            if stays is None or storage._cdata in stays or storage.nbytes() < self.least:
                return partial(self._here, call, tensor)
            begin = -(-self.used // _ALIGNED) * _ALIGNED
            if begin + storage.nbytes() > len(self.room):
                return partial(self._here, call, tensor)
            self.used = begin + storage.nbytes()
            host, flat = self.room[begin : self.used], _flat(storage, tensor.device)
            stored = call.stored[storage._cdata] = _Stored(host, flat, self.copy(host, flat))
        stored.readers += 1
        layout = tensor.storage_offset(), tensor.size(), tensor.stride()
        return partial(self._back, call, stored, tensor.device, tensor.dtype, layout)

    def _here(self, call: _Call, tensor: Tensor) -> Tensor:
        self._reach(call, tensor.device)
        return tensor

    def _back(
        self, call: _Call, stored: _Stored, device: torch.device, dtype: torch.dtype, layout: tuple[Any, Any, Any]
    ) -> Tensor:
        self._reach(call, device)
        self._fetch(stored, device)
        stored.arrive()
        stored.arrive = _nothing
        assert stored.device is not None
        storage = stored.device.untyped_storage()
        stored.readers -= 1
        if stored.readers == 0:
            stored.device = None
        return torch.empty(0, dtype=dtype, device=device).set_(storage, *layout)

    def _reach(self, call: _Call, device: torch.device) -> None:
        """Fetch what a block saved, since backward has come to it, and what the block before it saved."""
        if call.reached:
            return
        call.reached = True
        for needed in (call, call.before):
            for stored in needed.stored.values() if needed else ():
                self._fetch(stored, device)

    def _fetch(self, stored: _Stored, device: torch.device) -> None:
        if stored.device is None:
            stored.device = torch.empty_like(stored.host, device=device)
            stored.arrive = self.copy(stored.device, stored.host)


def _flat(storage: torch.UntypedStorage, device: torch.device) -> Tensor:
    """The bytes of a storage, uint8 [n]."""
    return torch.empty(0, dtype=torch.uint8, device=device).set_(storage)


def _bring(packed: Callable[[], Tensor]) -> Tensor:
    return packed()


def _nothing() -> None:
    pass
