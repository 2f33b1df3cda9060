"""The memory of a forward and backward pass, measured by running the pass on the meta device: tensors without values.

The pass is that of the trainer over a real batch. So everything that the model's code keeps for backward is counted, in
its type, and what a block computes again is not. A dispatch mode sees allocations, and the end of a storage frees them.
On meta all code runs as on a GPU, offloading to main memory too. Not counted: memory that kernels allocate inside, and
tensors that torch.compile saves and the uncompiled block does not.

torch.distributed._tools.MemTracker does this for whole trainings, sharding included, but needs a GPU for it.
"""

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lmms.train.batch.batch import Batch, map_tensors
from lmms.train.model.build import blocks
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import language_model, towers
from lmms.train.model.offload import LEAST_BYTES, copy_at_once, offload_blocks

Kind = str
"""When memory was allocated: the part of a tower while the tower runs, llm, loss after both, or backward."""

_FP32 = 4
_ENDLESS = 2**50


@dataclass(frozen=True, kw_only=True, slots=True)
class Peak:
    """The moment with most memory in use while the same gradients are done. Bytes of a whole, unsharded model."""

    used: Mapping[Kind, int]
    """Activations, gradients of activations, and gradients in the compute type of the unit that is being computed."""
    reducing: int
    """fp32 gradients of one unit, on their way to the ranks."""
    reduced: int
    """fp32 gradients of the units that are done: each rank keeps its shard."""
    done: int = 0
    """Parameters of the units whose backward is done, frozen parameters too."""
    forward: bool = False


def trace_pass(
    model: TrainModel, batch: Batch, dtype: torch.dtype, offload: int = 0, *, alone: bool = False
) -> list[Peak]:
    """The moments of one pass over a batch in this compute type, in order; the first moment is that of forward.

    model: from build_model, with its frozen parts frozen; it cannot be used for anything else afterwards. Units are
    those of shard_model: each block, and the rest. offload: bytes of main memory for what blocks keep. alone: the run
    has one rank, which keeps each gradient separately.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    batch = map_tensors(batch, lambda tensor: tensor.to("meta"))
    room = torch.empty(offload, dtype=torch.uint8, device="meta")
    if offload:
        offload_blocks(model, blocks(model), room, copy_at_once, LEAST_BYTES)
    live = _Live([*model.parameters(), *model.buffers(), *tensors_in(batch), room], alone)
    _tell_parts(model, live)
    for unit in [[parameter] for parameter in model.parameters()] if alone else units(model):
        _take_gradients(unit, live)
    with live:
        loss, _ = model(batch, batch.images > 0, step_has_sounds=batch.num_sounds > 0)
        live.moments.append(replace(live.moment(), forward=True))
        live.kind = "backward"
        if loss.requires_grad:
            loss.backward()
    return [*live.moments, live.moment()]


def offloaded_bytes(model: TrainModel, batch: Batch, dtype: torch.dtype) -> int:
    """Bytes of main memory for all that the blocks keep of a batch in this compute type. model: see trace_pass."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    room = torch.empty(_ENDLESS, dtype=torch.uint8, device="meta")
    used = offload_blocks(model, blocks(model), room, copy_at_once, LEAST_BYTES)
    on_meta = map_tensors(batch, lambda tensor: tensor.to("meta"))
    model(on_meta, batch.images > 0, step_has_sounds=batch.num_sounds > 0)
    return used()


def units(model: TrainModel) -> list[list[nn.Parameter]]:
    """The parameters that are gathered and reduced together: those of each block, and last those outside blocks."""
    of_blocks = [list(block.parameters()) for block in blocks(model)]
    taken = {parameter for unit in of_blocks for parameter in unit}
    return [*of_blocks, [parameter for parameter in model.parameters() if parameter not in taken]]


def tensors_in(batch: Batch) -> list[Tensor]:
    """All tensors of a batch."""
    tensors: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(batch, keep)
    return tensors


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that exist, by kind, and their peak since the last moment was taken."""

    def __init__(self, known: Sequence[Tensor], alone: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind: Kind = "llm"
        self.alone = alone
        self.moments: list[Peak] = []
        self.reduced = 0
        self.reducing = 0
        self.done = 0
        self._used: Counter[Kind] = Counter()
        self._peak = self._used.copy()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._add(tensor.untyped_storage())
        return output

    def moment(self) -> Peak:
        """The peak since the last moment; the next moment starts from the bytes in use now."""
        moment = Peak(used=dict(self._peak), reducing=self.reducing, reduced=self.reduced, done=self.done)
        self._peak = self._used.copy()
        return moment

    def reduce(self, parameters: Sequence[nn.Parameter], elements: int) -> None:
        """Copy a unit's gradients to fp32, reduce and free them, as its backward is done and its weights are free."""
        self.moments.append(self.moment())
        self.done += elements
        size = _FP32 * sum(parameter.numel() for parameter in parameters)
        if self.alone:
            # A gradient in fp32 is kept without a copy.
            copied = parameters[0].dtype != torch.float32
            self.reduced += size if copied else 0
            self.moments.append(self.moment())
            self.reduced += 0 if copied else size
        else:
            self.reducing = size
            self.moments.append(self.moment())
            # The copy is freed when the next unit needs a copy.
            self.reduced += size
        for parameter in parameters:
            parameter.grad = None
        self._peak = self._used.copy()

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size = storage.nbytes()
        self._used[self.kind] += size
        if self._used.total() > self._peak.total():
            self._peak = self._used.copy()
        weakref.finalize(storage, self._drop, storage._cdata, self.kind, size)

    def _drop(self, key: int, kind: Kind, size: int) -> None:
        self._known.discard(key)
        self._used[kind] -= size


def _tell_parts(model: TrainModel, live: _Live) -> None:
    """Set live.kind as forward goes through the model."""

    def enter(kind: Kind, *_: Any) -> None:
        live.kind = kind

    for part, tower in towers(model.hf):
        tower.register_forward_pre_hook(partial(enter, part))
        tower.register_forward_hook(partial(enter, "llm"))
    language_model(model.hf).register_forward_hook(partial(enter, "loss"))


def _take_gradients(unit: Sequence[nn.Parameter], live: _Live) -> None:
    """Call live.reduce for the gradients of a unit as soon as the last gradient is there."""
    parameters = [parameter for parameter in unit if parameter.requires_grad]
    waiting: set[Tensor] = set(parameters)
    elements = sum(parameter.numel() for parameter in unit)

    def arrived(parameter: Tensor) -> None:
        waiting.discard(parameter)
        if not waiting:
            live.reduce(parameters, elements)

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]
