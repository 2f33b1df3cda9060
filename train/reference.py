"""The reference attention as one operator that torch.compile does not look into: it needs the documents' lengths.

Autograd does not see inside an operator, so its gradient is written out as in FlashAttention (arXiv 2205.14135,
appendix B). A document's whole matrix of scores is held: this is for CPUs.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op


@custom_op("lmms::documents_attention", mutates_args=())
def documents_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
) -> Tensor:
    """See attention.reference_attention."""
    lengths, heads = cu_seqlens.diff().tolist(), query.shape[1]
    documents = zip(*(_documents(part, lengths, heads) for part in (query, key, value)), strict=True)
    return _joined(_weights(q, k, scale, causal) @ v for q, k, v in documents)


@custom_op("lmms::documents_attention_backward", mutates_args=())
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    lengths, heads = cu_seqlens.diff().tolist(), query.shape[1]
    q_grads, k_grads, v_grads = list[Tensor](), list[Tensor](), list[Tensor]()
    documents = zip(*(_documents(part, lengths, heads) for part in (grad, query, key, value)), strict=True)
    for g, q, k, v in documents:
        weights = _weights(q, k, scale, causal)
        of_weights = g @ v.mT
        of_scores = scale * weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
        q_grads.append(of_scores @ k)
        k_grads.append(of_scores.mT @ q)
        v_grads.append(weights.mT @ g)
    return _joined(q_grads), _summed(_joined(k_grads), key), _summed(_joined(v_grads), value)


@documents_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, causal: bool) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (torch.empty_like(part, memory_format=torch.contiguous_format) for part in (query, key, value))
    return query, key, value


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.causal = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.causal), None, None, None


documents_attention.register_autograd(_differentiate, setup_context=_save)


def _documents(part: Tensor, lengths: list[int], heads: int) -> tuple[Tensor, ...]:
    """[T, some heads, D] -> of each document [heads, its length, D]."""
    whole = part.repeat_interleave(heads // part.shape[1], dim=1).transpose(0, 1)
    return whole.split_with_sizes(lengths, dim=1)


def _joined(documents: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(documents), dim=1).transpose(0, 1).contiguous()


def _summed(grad: Tensor, part: Tensor) -> Tensor:
    """[T, heads, D] -> [T, the heads of part, D]: each of those served several."""
    return grad.reshape(*part.shape[:2], -1, part.shape[2]).sum(2)


def _weights(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    scores = scale * query @ key.mT
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)
