"""The attention kernels that are compared, each as the trainer's seam wants it (train/model/attention.py, Attend)."""

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lmms.configs.settings.kernels import Attention, KernelsConfig
from lmms.train.model import kernels
from lmms.train.model.attention import Attend, varlen_attention
from tools.gpu.errors import NotHereError

Backend = Attention | Literal["cudnn", "flex"]
BACKENDS: tuple[Backend, ...] = (*get_args(Attention), "cudnn", "flex")


def attend_by(backend: Backend, device: torch.device) -> Attend:
    """The kernel of this name. NotHereError or ConfigError where it cannot be used on this device.

    flash-attn-3 and -4 take the place of torch's own for the rest of the process.
    """
    match backend:
        case "varlen":
            # On a CPU too, where the trainer's own function is the reference.
            return varlen_attention
        case "flex" | "cudnn" if device.type != "cuda":
            raise NotHereError(f"{backend} has its gradients on a GPU alone")
        case "flex":
            return _flex
        case "cudnn":
            return nested_attention
    kernels.choose_kernels(KernelsConfig(attention=backend), kernels.this_machine(device, torch.bfloat16))
    return kernels.use_attention(backend)


def nested_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    scale: float,
    causal: bool,
) -> Tensor:
    """SDPA by cuDNN over torch's jagged tensors: its way to many documents, which the trainer does not take."""
    groups = query.shape[1] // key.shape[1]
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(part, cu_seqlens, min_seqlen=1, max_seqlen=max_length).transpose(1, 2)
        for part in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        output = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    values: Tensor = output.transpose(1, 2).contiguous().values()
    return values


def _flex(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, max_length: int, scale: float, causal: bool
) -> Tensor:
    q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (query, key, value))
    output = _compiled_flex(query.is_cuda)(
        q, k, v, block_mask=document_mask(cu_seqlens, causal), scale=scale, enable_gqa=query.shape[1] != key.shape[1]
    )
    flat: Tensor = output.squeeze(0).transpose(0, 1)
    return flat


@cache
def _compiled_flex(compiled: bool) -> Callable[..., Any]:
    """Not compiled it is right and slow, and holds all scores."""
    plain: Callable[..., Any] = flex_attention
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(plain, dynamic=False) if compiled else plain


@cache
def document_mask(cu_seqlens: Tensor, causal: bool) -> BlockMask:
    """Of flex attention: within the same document. Made once for a pack, as all layers of a model share it."""
    tokens = int(cu_seqlens[-1])
    document = torch.searchsorted(cu_seqlens[1:].long(), torch.arange(tokens, device=cu_seqlens.device), right=True)

    def same(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        inside = document[q] == document[k]
        return inside & (q >= k) if causal else inside

    return create_block_mask(same, None, None, tokens, tokens, device=cu_seqlens.device.type)
