"""Attention of many documents in one sequence, one document at a time: what every kernel is held to, and the kernel of
the CPU. For the compiler an operator of its own, with its backward."""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import custom_op


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
) -> Tensor:
    """varlen_attention, one document at a time; the CPU waits for the device to learn the lengths."""
    if torch.compiler.is_compiling():
        output: Tensor = documents_attention(query, key, value, cu_seqlens, scale, causal)
        return output
    lengths = cu_seqlens.diff().tolist()
    # [1, heads, T, D], as SDPA takes it
    q, k, v = (part.transpose(0, 1).unsqueeze(0).split_with_sizes(lengths, dim=2) for part in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    outputs = [
        F.scaled_dot_product_attention(*document, is_causal=causal, scale=scale, enable_gqa=grouped)
        for document in zip(q, k, v, strict=True)
    ]
    return torch.cat(outputs, dim=2).squeeze(0).transpose(0, 1)


@custom_op("lmms::documents_attention", mutates_args=())
def documents_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, scale: float, causal: bool
) -> Tensor:
    """reference_attention as an operator that the compiler does not look into."""
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
    """[T, some heads, D] -> [heads, length, D] for each document."""
    whole = part.repeat_interleave(heads // part.shape[1], dim=1).transpose(0, 1)
    return whole.split_with_sizes(lengths, dim=1)


def _joined(documents: Iterable[Tensor]) -> Tensor:
    return torch.cat(list(documents), dim=1).transpose(0, 1).contiguous()


def _summed(grad: Tensor, part: Tensor) -> Tensor:
    """[T, heads, D] -> [T, heads of part, D]: each head of part served several heads."""
    return grad.reshape(*part.shape[:2], -1, part.shape[2]).sum(2)


def _weights(query: Tensor, key: Tensor, scale: float, causal: bool) -> Tensor:
    scores = scale * query @ key.mT
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1)
