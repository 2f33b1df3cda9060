"""Attention within documents: equal to a dense attention under a block mask, and found by transformers."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface

from lmms.train.model.attention import ATTENTION_NAME, Documents, varlen_attention
from lmms.train.model.reference import reference_attention

LENGTHS = (5, 1, 9, 2)
CU_SEQLENS = torch.tensor([0, 5, 6, 15, 17], dtype=torch.int32)


def parts(heads: int, key_heads: int, dtype: torch.dtype = torch.float64, device: str = "cpu") -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(sum(LENGTHS), count, 16) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes]


def dense_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool) -> Tensor:
    """One matrix of all tokens, masked to blocks."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    allowed = document[:, None] == document[None]
    if causal:
        allowed = allowed.tril()
    repeats = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
def test_documents_attend_to_themselves_alone(heads: int, key_heads: int, causal: bool) -> None:
    tensors = parts(heads, key_heads)
    found = varlen_attention(*tensors, Documents(CU_SEQLENS, max(LENGTHS), 0.3, causal))
    expected = dense_attention(*tensors, 0.3, causal)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((out * direction).sum(), tensors) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_empty_documents_are_allowed() -> None:
    tensors = parts(4, 2)
    padded = torch.tensor([0, 5, 5, 6, 15, 17, 17, 17], dtype=torch.int32)
    found = varlen_attention(*tensors, Documents(padded, max(LENGTHS), 0.3, True))
    assert torch.equal(found, varlen_attention(*tensors, Documents(CU_SEQLENS, max(LENGTHS), 0.3, True)))


def test_transformers_finds_the_function_and_builds_no_mask() -> None:
    assert "flash" in ATTENTION_NAME
    assert ATTENTION_NAME in AttentionInterface().valid_keys()
    assert ATTENTION_NAME not in AttentionMaskInterface().valid_keys()


@pytest.mark.parametrize("causal", [True, False])
def test_cuda_in_half_precision_takes_the_kernel(causal: bool) -> None:
    """With fake tensors, so that the call into torch is checked on a machine without a GPU."""
    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            called.append((str(function), args))
            return function(*args, **(kwargs or {}))

    with FakeTensorMode(allow_non_fake_inputs=True):
        tensors = [part.to("cuda:0") for part in parts(4, 2, torch.bfloat16)]
        with Record():
            output = varlen_attention(*tensors, Documents(CU_SEQLENS.to("cuda:0"), 16, 0.3, causal))
    assert output.shape == (sum(LENGTHS), 4, 16)
    kernel = [args for name, args in called if "_varlen_attn" in name]
    assert len(kernel) == 1
    assert kernel[0][5:9] == (16, 16, causal, 0.3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2)])
def test_the_kernel_agrees_with_the_reference(heads: int, key_heads: int, causal: bool) -> None:
    tensors = parts(heads, key_heads, torch.bfloat16, "cuda")
    cu_seqlens = CU_SEQLENS.cuda()
    exact = [part.detach().float().requires_grad_() for part in tensors]
    found = varlen_attention(*tensors, Documents(cu_seqlens, max(LENGTHS), 0.3, causal))
    expected = reference_attention(*exact, cu_seqlens, 0.3, causal)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad((found.float() * direction).sum(), tensors)
    theirs = torch.autograd.grad((expected * direction).sum(), exact)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=5e-2, atol=5e-2)
