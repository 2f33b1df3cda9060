"""Ranks, devices and shards: the same path for one process and for many.

FSDP2 over one flat mesh: each block is a unit, the rest (embeddings, head, merger) belongs to the root. Gradients are
sums over ranks, since the loss is already divided by the step's total weight; so too where ranks share packs
(parallel.sequence), each with the loss of its own tokens. Two traps of FSDP2:
set_gradient_divide_factor holds for one module only, and gloo lacks the reduction that it uses by default.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lmms.configs.errors import ConfigError
from lmms.configs.parallel import check_sequence_ranks
from lmms.train.share import WHOLE, Share

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among all that train together."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    share: Share = WHOLE
    """The part of its packs that this rank trains on; the ranks with the other parts are its neighbours."""
    sequence_group: dist.ProcessGroup | None = None
    """Those ranks and this one, in the order of their parts; None where each rank has packs of its own."""

    @property
    def data_rank(self) -> int:
        """Number of this rank's packs among data_size: ranks that share them have the same."""
        return self.rank // self.share.ranks

    @property
    def data_size(self) -> int:
        """How many ranks, or groups of ranks that share packs, a step is dealt out to."""
        return self.size // self.share.ranks

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reports and writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier()

    def total(self, values: torch.Tensor) -> list[float]:
        """Each of these values summed over the ranks. It waits for the device, and overwrites `values`."""
        dist.all_reduce(values)
        return [float(value) for value in values.tolist()]

    def from_main(self, value: T) -> T:
        """The value that rank 0 holds, on every rank."""
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def start_world(setting: Literal["auto", "cpu", "cuda"], stall_s: float = 1800.0, sequence: int = 1) -> World:
    """Join the ranks that a launcher announced in the environment, or be the only one.

    stall_s: of the watchdog, which has more to say than a collective that waited for too long, and so comes first.
    sequence: ranks that share their packs, one after the other.
    ConfigError without the GPU that is asked for, and for a number of ranks that `sequence` does not divide.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here; set device to cpu or auto")
    kind = "cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu"
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    check_sequence_ranks(sequence, size)
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    store = None if "RANK" in os.environ else dist.HashStore()  # type: ignore[attr-defined]
    timeout = timedelta(seconds=2 * stall_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    group = None
    if sequence > 1:
        group, _ = dist.new_subgroups(sequence, timeout=timeout)  # type: ignore[no-untyped-call]
    return World(rank, size, device, init_device_mesh(kind, (size,)), Share(rank % sequence, sequence), group)


def stop_world() -> None:
    """Leave the group that start_world joined."""
    dist.destroy_process_group()


def compute_dtype(setting: Literal["auto", "bf16", "fp32"], device: torch.device) -> torch.dtype:
    """The type of weights and activations in forward and backward; master weights and reductions are fp32."""
    if setting == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if setting == "bf16" else torch.float32


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, which shares its memory; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_model(model: nn.Module, blocks: Sequence[nn.Module], world: World, dtype: torch.dtype) -> None:
    """Shard every parameter over the ranks, in place: the blocks first, what remains with the root.

    Inputs are not cast: rotary tables stay fp32 on their way into the blocks, as in the models themselves.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=world.mesh, mp_policy=policy)
    fully_shard(model, mesh=world.mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
