"""How FSDP2 shards a model: each block is a unit, the rest (embeddings, head, merger) belongs to the root.

Gradients are sums over ranks, since the loss is already divided by the step's total weight; so too where ranks share
packs (parallel.sequence), each with the loss of its tokens. Two traps of FSDP2: set_gradient_divide_factor holds for
one module only, and gloo lacks the reduction that FSDP2 uses by default.

Blocks are gathered ahead as FSDP2 does by itself: in backward FSDP2 asks for the block before; in forward each block is
asked for when the CPU comes to the block, far ahead of the GPU, since a step never waits for the GPU. Asking explicitly
(set_modules_to_forward_prefetch) would be for a CPU that is slower than the GPU, and keep one block more in memory.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from lmms.train.parallel.one_rank import Copies
from lmms.train.parallel.world import World


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a tensor, in the same memory; the whole tensor where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_model(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    world: World,
    dtype: torch.dtype,
    reshard: bool = True,
    offload: bool = False,
) -> None:
    """Shard every parameter over the ranks, in place: the blocks first, what remains with the root.

    reshard, offload: see ParallelConfig. The last block is not resharded: backward starts with it.
    Inputs are not cast: rotary tables stay fp32 on their way into the blocks, as in the models themselves.
    One rank alone shards nothing, see Copies; with offload it uses FSDP2 for the way to main memory and back.
    """
    if world.size == 1 and not offload:
        kept: Any = model
        kept.copies = Copies(model, blocks, dtype, reshard)
        return
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    where = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if offload else OffloadPolicy()
    for block in blocks:
        again = reshard and block is not blocks[-1]
        fully_shard(block, mesh=world.mesh, mp_policy=policy, offload_policy=where, reshard_after_forward=again)
    fully_shard(model, mesh=world.mesh, mp_policy=policy, offload_policy=where, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def reshard_all(model: nn.Module) -> None:
    """Free what forward passes gathered where no backward follows: the next step would use these old weights."""
    if isinstance(copies := getattr(model, "copies", None), Copies):
        copies.release()
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
