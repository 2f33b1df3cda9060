"""Ranks and their devices, over a flat mesh or a mesh with a row for each copy of the weights (parallel.replicate)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from lmms.configs.errors import ConfigError, LmmsError, TrainError
from lmms.configs.settings.parallel import check_offload, check_ranks
from lmms.configs.settings.train import Device, Precision
from lmms.train.parallel.launched import launched
from lmms.train.parallel.share import WHOLE, Share

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among all that train together."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    """A mesh of one dimension, or of two: copies of the weights, and the ranks that a copy is sharded over."""
    share: Share = WHOLE
    """The part of its packs that this rank trains on; the ranks with the other parts are its neighbours."""
    sequence_group: dist.ProcessGroup | None = None
    """This rank and its neighbours, in the order of their parts; None where no ranks share packs."""

    @property
    def data_rank(self) -> int:
        """Number of this rank's packs among data_size: ranks that share packs have the same number."""
        return self.rank // self.share.ranks

    @property
    def data_size(self) -> int:
        """How many ranks, or groups of ranks that share packs, a step is dealt out to."""
        return self.size // self.share.ranks

    @property
    def replicas(self) -> int:
        """Ranks that hold the same shard of every parameter."""
        return self.mesh.size(0) if self.mesh.ndim > 1 else 1

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that reports and writes what is written once."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> list[float]:
        """Each of these values summed over the ranks. Waits for the device, and overwrites `values`."""
        dist.all_reduce(values)
        return [float(value) for value in values.tolist()]

    def once(self, act: Callable[[], T]) -> T:
        """The result of `act` on rank 0, given to every rank; so is an LmmsError that `act` raises."""
        outcome: list[T] | LmmsError = []
        if self.is_main:
            try:
                outcome = [act()]
            except LmmsError as error:
                outcome = error
        outcomes = [outcome]
        dist.broadcast_object_list(outcomes)
        (outcome,) = outcomes
        if isinstance(outcome, LmmsError):
            raise outcome
        return outcome[0]

    def joined(self, entries: Sequence[T]) -> list[T]:
        """The entries of every rank, by rank."""
        return list(chain.from_iterable(_gather(list(entries), None)))


def of_all_ranks(act: Callable[[], T], group: dist.ProcessGroup | None = None) -> list[T]:
    """The results of `act` on the ranks of the group, by rank. TrainError on every rank if a rank fails."""
    outcome: tuple[list[T], str] = ([], "")
    try:
        outcome = ([act()], "")
    except (OSError, LmmsError) as error:
        outcome = ([], str(error))
    everyone = _gather(outcome, group)
    if faults := sorted({fault for _, fault in everyone if fault}):
        raise TrainError("; ".join(faults))
    return [value for values, _ in everyone for value in values]


def _gather(value: T, group: dist.ProcessGroup | None) -> list[T]:
    everyone = [value] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group=group)
    return everyone


def start_world(
    setting: Device,
    stall_s: float = 1800.0,
    sequence: int = 1,
    replicate: int = 1,
    offload: bool = False,
) -> World:
    """Join the ranks that a launcher announced in the environment, or be the only rank.

    stall_s: seconds of the watchdog, which comes first, as it says more than a collective that waited for too long.
    sequence: ranks that share their packs, one after the other.
    replicate: copies of the weights, each over ranks that follow one another. offload: see ParallelConfig.
    ConfigError for half of an announcement, without the GPU that is asked for, for a number of ranks that `sequence` or
    `replicate` does not divide, and for offload without a GPU.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here; set device to cpu or auto")
    kind = "cuda" if setting != "cpu" and torch.cuda.is_available() else "cpu"
    process = launched()
    rank, size = process.rank, process.size
    check_offload(offload, kind)
    check_ranks(sequence, replicate, size)
    device = torch.device("cpu")
    if kind == "cuda":
        device = torch.device("cuda", process.local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
    store = None if process.together else dist.HashStore()  # type: ignore[attr-defined]
    timeout = timedelta(seconds=2 * stall_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    group = None
    if sequence > 1:
        group, _ = dist.new_subgroups(sequence, timeout=timeout)  # type: ignore[no-untyped-call]
    sizes, names = ((size,), ("shard",)) if replicate == 1 else ((replicate, size // replicate), ("replicate", "shard"))
    mesh = init_device_mesh(kind, sizes, mesh_dim_names=names)
    return World(rank, size, device, mesh, Share(rank % sequence, sequence), group)


def stop_world() -> None:
    """Leave the group that start_world joined."""
    dist.destroy_process_group()


def compute_dtype(setting: Precision, device: torch.device) -> torch.dtype:
    """The type of weights and activations in forward and backward; master weights and reductions are fp32."""
    if setting == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if setting == "bf16" else torch.float32
