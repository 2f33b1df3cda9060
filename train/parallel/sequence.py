"""What ranks that train on the same packs give one another (parallel.sequence): heads for tokens, image features.

Every rank has a run of the tokens, except inside attention, where a rank has some heads of all tokens: so documents
attend as they do on one rank, and their boundaries stay as they are (DeepSpeed-Ulysses, arXiv 2309.14509). All sizes
are known on the CPU, so nothing waits for the device.
"""

from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmms.train.parallel.share import Exchange


def to_heads(query: Tensor, key: Tensor, value: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """From a run of the tokens with all heads to all tokens with a share of the heads.

    query [T / ranks, heads, D], key and value [T / ranks, key_heads, D], with heads a multiple of the group's ranks and
    of key_heads -> [T, heads / ranks, D] and twice [T, n, D], where heads / ranks is a multiple of n. Where key heads
    cannot be dealt out evenly, each goes to several ranks, and its gradients are summed.
    """
    ranks, size = group.size(), query.shape[2]
    copies = ranks // gcd(key.shape[1], ranks)
    key, value = (part.repeat_interleave(copies, dim=1) if copies > 1 else part for part in (key, value))
    # [ranks, T / ranks, heads of one rank, D]: one exchange for all three
    parts = [part.reshape(len(part), ranks, -1, size).transpose(0, 1) for part in (query, key, value)]
    each = (1,) * ranks
    received = _all_to_all(torch.cat(parts, dim=2), each, each, group).flatten(0, 1)
    q, k, v = received.split_with_sizes([part.shape[2] for part in parts], dim=1)
    return q, k, v


def to_tokens(output: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The way back: [T, heads / ranks, D] -> [T / ranks, heads, D]."""
    ranks = group.size()
    each = (1,) * ranks
    received = _all_to_all(output.reshape(ranks, -1, *output.shape[1:]), each, each, group)
    return received.transpose(0, 1).flatten(1, 2)


def exchange_features(features: Tensor, exchange: Exchange, group: dist.ProcessGroup) -> Tensor:
    """Features [rows, H] of this rank's images -> features [rows received, H] of this rank's tokens.

    A rank without images passes the features of a dummy, of which nothing is sent. All ranks take part, also in
    backward.
    """
    return _all_to_all(features[: sum(exchange.sent)], exchange.sent, exchange.received, group)


def _all_to_all(tensor: Tensor, sent: tuple[int, ...], received: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
    """sent[i] rows of the tensor to rank i -> received[i] rows from rank i. The gradients go back the same way."""
    result: Tensor = _AllToAll.apply(tensor, sent, received, group)  # type: ignore[no-untyped-call]
    return result


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: Tensor, sent: tuple[int, ...], received: tuple[int, ...], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchanged(tensor, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _exchanged(grad_outputs[0], ctx.received, ctx.sent, ctx.group), None, None, None


def _exchanged(tensor: Tensor, sent: tuple[int, ...], received: tuple[int, ...], group: dist.ProcessGroup) -> Tensor:
    output = tensor.new_empty(sum(received), *tensor.shape[1:])
    dist.all_to_all_single(output, tensor.contiguous(), list(received), list(sent), group=group)
    return output
