"""The one attention of every model here: many documents in one sequence, told apart by cumulative lengths.

Registered with transformers under a name that holds "flash": only then do the Qwen vision towers hand over cumulative
lengths instead of looping over images in Python, with a synchronisation for each. The name has no mask
function, so transformers builds no mask. The name must be set on the config of a finished model: at construction
transformers takes an unknown name with "flash" for a kernel of the hub and raises.

CUDA in bf16 or fp16: torch's variable-length flash attention. Everywhere else: one SDPA call a document, the reference.
choose_kernels chooses the kernel of a run, by name.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from lmms.configs.settings.kernels import Attention
from lmms.train.model.reference import reference_attention
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


class Documents(NamedTuple):
    """The documents of one sequence, and how their tokens attend."""

    cu_seqlens: Tensor
    """int32 [documents + 1]"""
    max_length: int
    """Tokens of the longest document, or any upper bound of that number."""
    scale: float
    """The factor of each product of query and key."""
    causal: bool


Attend = Callable[[Tensor, Tensor, Tensor, Documents], Tensor]
"""A function with the arguments of varlen_attention."""

_PARAMETERS = inspect.signature(varlen_attn).parameters
_CAUSAL: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _PARAMETERS else {"is_causal": True}
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _PARAMETERS else {}
"""torch 2.11 has no enable_gqa: its kernel takes fewer key heads as they are."""


def varlen_attention(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """[T, heads, D] from query [T, heads, D], key and value [T, key_heads, D]; heads is a multiple of key_heads."""
    # A tensor without values stands for a tensor on a GPU: see trace_pass.
    if query.is_meta or (query.is_cuda and query.dtype in (torch.bfloat16, torch.float16)):
        bounds, longest, scale, causal = documents
        options = {**(_CAUSAL if causal else {}), **(_GROUPED if query.shape[1] != key.shape[1] else {})}
        output = varlen_attn(query, key, value, bounds, bounds, longest, longest, scale=scale, **options)
        assert isinstance(output, Tensor)
        return output
    return _sdpa(query, key, value, documents)


def with_windows(
    attend: Attend, windows: int, query: Tensor, key: Tensor, value: Tensor, documents: Documents
) -> Tensor:
    """attend, with `windows` more documents before the others, each max_length long: a dense batch."""
    rows = windows * documents.max_length
    if rows == 0:
        return attend(query, key, value, documents)
    if query.is_meta:
        # Without values torch would keep whole matrices of scores, which no GPU does.
        dense = attend(query[:rows], key[:rows], value[:rows], documents)
    else:
        # [windows, heads, max_length, D]
        q, k, v = (
            part[:rows].view(windows, documents.max_length, *part.shape[1:]).transpose(1, 2)
            for part in (query, key, value)
        )
        dense = F.scaled_dot_product_attention(q, k, v, is_causal=documents.causal, scale=documents.scale)
        dense = dense.transpose(1, 2).flatten(0, 1)
    if rows == len(query):
        return dense
    return torch.cat([dense, attend(query[rows:], key[rows:], value[rows:], documents)])


def _flash_attn_2(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    output: Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        *(documents.cu_seqlens, documents.cu_seqlens),
        *(documents.max_length, documents.max_length),
        softmax_scale=documents.scale,
        causal=documents.causal,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return output


def _sdpa(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    return reference_attention(query, key, value, documents.cu_seqlens, documents.scale, documents.causal)


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
    documents = Documents(cu_seq_lens_q, max_length_q, scaling, causal)
    output = with_windows(attend, dense_windows, q, k, v, documents)
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
