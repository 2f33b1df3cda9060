"""The one attention of every model here: many documents in one sequence, told apart by cumulative lengths.

Registered with transformers under a name that holds "flash": only then do the Qwen vision towers hand over cumulative
lengths instead of looping over images in Python, with a synchronisation for each. The name has no mask
function, so transformers builds no mask. The name must be set on the config of a finished model: at construction
transformers takes an unknown name with "flash" for a kernel of the hub and raises.

CUDA in bf16 or fp16: torch's variable-length flash attention. Everywhere else: one SDPA call a document, the reference.
choose_kernels chooses the kernel of a run, by name.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.library import custom_op
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from lmms.configs.settings.kernels import Attention
from lmms.train.parallel.sequence import to_heads, to_tokens

ATTENTION_NAME = "lmms_flash_varlen"

ATTENTION_NAMES: Mapping[Attention, str] = {
    "varlen": ATTENTION_NAME,
    "flash-attn-2": "lmms_flash_attn_2",
    # torch's function, after it was told to pass on to these packages
    "flash-attn-3": ATTENTION_NAME,
    "flash-attn-4": ATTENTION_NAME,
    "sdpa": "lmms_flash_sdpa",
}
"""Kernel -> the name that it has in transformers."""

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, bool], Tensor]
"""A function with the arguments of varlen_attention."""

_PARAMETERS = inspect.signature(varlen_attn).parameters
_CAUSAL: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _PARAMETERS else {"is_causal": True}
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _PARAMETERS else {}
"""torch 2.11 has no enable_gqa: its kernel takes fewer key heads as they are."""


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, scale: float, causal: bool
) -> Tensor:
    """[T, heads, D] from query [T, heads, D], key and value [T, key_heads, D]; cu_seqlens int32 [documents + 1].

    heads is a multiple of key_heads. max_length is the longest document in tokens, or any upper bound of that length.
    """
    # A tensor without values stands for a tensor on a GPU: see trace_pass.
    if query.is_meta or (query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)):
        options = {**(_CAUSAL if causal else {}), **(_GROUPED if query.shape[1] != key.shape[1] else {})}
        output = varlen_attn(query, key, value, cu_seqlens, cu_seqlens, max_length, max_length, scale=scale, **options)
        assert isinstance(output, Tensor)
        return output
    return reference_attention(query, key, value, cu_seqlens, scale, causal)


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


def with_windows(
    attend: Attend,
    windows: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """attend, with `windows` more documents before those of cu_seqlens, each max_length long: a dense batch."""
    rows = windows * max_length
    if rows == 0:
        return attend(query, key, value, cu_seqlens, max_length, scale, causal)
    if query.is_meta:
        # Without values torch would keep whole matrices of scores, which no GPU does.
        dense = attend(query[:rows], key[:rows], value[:rows], cu_seqlens, max_length, scale, causal)
    else:
        # [windows, heads, max_length, D]
        q, k, v = (
            part[:rows].view(windows, max_length, *part.shape[1:]).transpose(1, 2) for part in (query, key, value)
        )
        dense = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale).transpose(1, 2).flatten(0, 1)
    if rows == len(query):
        return dense
    return torch.cat([dense, attend(query[rows:], key[rows:], value[rows:], cu_seqlens, max_length, scale, causal)])


def _flash_attn_2(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, scale: float, causal: bool
) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    output: Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        cu_seqlens,
        cu_seqlens,
        max_length,
        max_length,
        softmax_scale=scale,
        causal=causal,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return output


def _sdpa(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, scale: float, causal: bool
) -> Tensor:
    return reference_attention(query, key, value, cu_seqlens, scale, causal)


def attend_documents(
    attend: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    is_causal: bool | None = None,
    sequence_group: ProcessGroup | None = None,
    dense_windows: int = 0,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, heads, T, D] in, [1, T, heads, D] out, where T are this rank's tokens."""
    q, k, v = (part.squeeze(0).transpose(0, 1) for part in (query, key, value))
    causal = bool(module.is_causal) if is_causal is None else is_causal
    if sequence_group is not None:
        q, k, v = to_heads(q, k, v, sequence_group)
    output = with_windows(attend, dense_windows, q, k, v, cu_seq_lens_q, max_length_q, scaling, causal)
    if sequence_group is not None:
        output = to_tokens(output, sequence_group)
    return output.unsqueeze(0), None


ATTENDS: Mapping[Attention, Attend] = {
    "varlen": varlen_attention,
    "flash-attn-2": _flash_attn_2,
    "flash-attn-3": varlen_attention,
    "flash-attn-4": varlen_attention,
    "sdpa": _sdpa,
}
"""Kernel -> the function that calls it, see ATTENTION_NAMES."""

for _kernel, _attend in ATTENDS.items():
    AttentionInterface.register(ATTENTION_NAMES[_kernel], partial(attend_documents, _attend))


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
