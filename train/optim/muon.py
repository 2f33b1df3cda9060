"""Muon: a step along the orthogonalised average of a matrix's gradients.

Keller Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; decay, and steps as large as AdamW's (a root mean
square of about 0.2 lr) so that the same lr and weight_decay serve, as in Muon is Scalable for LLM Training (Liu et al.
2025, arXiv 2502.16982).

Orthogonalisation needs whole matrices. At a time, as many matrices of one shape are taken as there are ranks: each rank
gets the shards of one matrix, orthogonalises it, and gives the shards back. So the ranks share the work, a rank never
holds more than one whole matrix, and any number of ranks computes the same.
torch.optim.Muon (2.9 on) would do all of the work on every rank, in bf16 on sharded operands.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmms.train.parallel.sharding import local_of

_A, _B, _C, _ITERATIONS = 3.4445, -4.7750, 2.0315, 5
"""Jordan's constants: singular values from 0.003 of the norm on come out between 0.7 and 1.2."""
_RMS = 0.2
_TINY = torch.finfo(torch.float32).tiny


def orthogonalised(matrices: Tensor) -> Tensor:
    """[n, rows, columns]: U V, roughly, for each matrix U S V, by Newton and Schulz's iteration; 0 stays 0."""
    tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if tall else matrices
    # Scaled to 1 first: in some units of the loss, squares of gradients are too small or too large for fp32.
    wide = wide / wide.abs().amax((1, 2), keepdim=True).clamp(min=_TINY)
    wide = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C)
        wide = torch.baddbmm(wide, polynomial, wide, beta=_A)
    result: Tensor = wide.mT if tall else wide
    return result


def new_momentum(parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state of a parameter before its first step, sharded like it."""
    return {"momentum": torch.zeros_like(parameter.detach())}


def update_muon(parameters: Sequence[nn.Parameter], states: Sequence[dict[str, Tensor]], group: Any) -> None:
    """One step, on all ranks together: ranks that share a parameter must have gradients of the same parameters.

    group["stacked"]: how many matrices of equal size each parameter is, one below the other.
    """
    stacked, lr = group["stacked"], group["lr"]
    for members in _rounds(parameters, states):
        directions = [_direction(parameter, state, group["momentum"]) for parameter, state in members]
        shape = members[0][0].shape
        scale = _RMS * math.sqrt(max(shape[0] // stacked, shape[1]))
        for (parameter, _), update in zip(members, _shared_out(directions, members[0][0], stacked), strict=True):
            weight = local_of(parameter.detach())
            weight.mul_(1 - lr * group["weight_decay"])
            weight.add_(update.to(weight), alpha=-lr * scale)


def _rounds(
    parameters: Sequence[nn.Parameter], states: Sequence[dict[str, Tensor]]
) -> Iterator[list[tuple[nn.Parameter, dict[str, Tensor]]]]:
    """Parameters of one shape, as many as there are ranks, with their states."""
    every = list(zip(parameters, states, strict=True))
    for _, of_shape in groupby(sorted(every, key=_shape), _shape):
        members = list(of_shape)
        ranks = _ranks(members[0][0])
        yield from (members[i : i + ranks] for i in range(0, len(members), ranks))


def _shape(member: tuple[nn.Parameter, dict[str, Tensor]]) -> tuple[int, ...]:
    return tuple(member[0].shape)


def _ranks(parameter: nn.Parameter) -> int:
    """How many ranks a copy of the parameter is sharded over: the last dimension of its mesh."""
    mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
    return mesh.size(mesh.ndim - 1) if mesh else 1


def _direction(parameter: nn.Parameter, state: dict[str, Tensor], momentum: float) -> Tensor:
    """This rank's shard of the matrix to orthogonalise (Nesterov's average), on the device and in the type for that."""
    gradient, average = local_of(parameter.grad), local_of(state["momentum"])  # type: ignore[arg-type]
    average.lerp_(gradient, 1 - momentum)
    # Offloaded weights are on the CPU; their mesh tells the device that computes.
    kind = parameter.device_mesh.device_type if isinstance(parameter, DTensor) else parameter.device.type
    # On the CPU in fp32: bf16 is slower there, and its rounding would depend on the ranks.
    return gradient.lerp(average, momentum).to(kind, torch.bfloat16 if kind == "cuda" else torch.float32)


def _shared_out(shards: Sequence[Tensor], like: nn.Parameter, stacked: int) -> Sequence[Tensor]:
    """This rank's shards of the matrices -> its shards of the orthogonalised matrices. Rank i computes matrix i.

    like: a parameter with the shape and the sharding of the matrices.
    """
    if _ranks(like) == 1:
        return [_by_matrix(shard, stacked) for shard in shards]
    assert isinstance(like, DTensor)
    mesh = like.device_mesh
    group, ranks, rank = mesh.get_group(mesh.ndim - 1), _ranks(like), mesh.get_local_rank(mesh.ndim - 1)
    rows, columns = like.shape
    each = -(-rows // ranks)
    # FSDP2 cuts rows into ceil(rows / ranks), the last ones shorter.
    of_rank = [columns * max(min(rows - i * each, each), 0) for i in range(ranks)]
    matrix_splits = of_rank if rank < len(shards) else [0] * ranks
    shard_splits = [of_rank[rank] if i < len(shards) else 0 for i in range(ranks)]
    sent = torch.cat([shard.flatten() for shard in shards])
    whole = sent.new_empty(sum(matrix_splits))
    dist.all_to_all_single(whole, sent, matrix_splits, shard_splits, group)
    if rank < len(shards):
        whole = _by_matrix(whole.view(rows, columns), stacked).flatten()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, whole, shard_splits, matrix_splits, group)
    return list(received.view(len(shards), -1, columns)) if of_rank[rank] else shards


def _by_matrix(stack: Tensor, stacked: int) -> Tensor:
    return orthogonalised(stack.view(stacked, -1, stack.shape[1])).flatten(0, 1)
