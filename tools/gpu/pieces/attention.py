"""Attention kernels in bf16: each against fp32 first, then its speed, on the layers of the models that are trained.

A kernel is a function of the type Attend.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmms.configs.settings.kernels import Attention, KernelsConfig
from lmms.train.model import kernels
from lmms.train.model.attention import Attend, Documents, varlen_attention, with_windows
from lmms.train.model.reference import reference_attention
from tools.gpu.pieces.measuring import Check, check, median_seconds, relative_error
from tools.gpu.pieces.models import Sizes, model_config
from tools.gpu.pieces.packs import pack_file
from tools.gpu.pieces.shapes import Layer, attention_layers
from tools.gpu.processes import NotHereError

Kernel = Attention | Literal["cudnn"]
KERNELS: tuple[Kernel, ...] = (*get_args(Attention), "cudnn")

TOLERANCES = {"output": 1e-2, "query": 2e-2, "key": 2e-2, "value": 2e-2}
"""Relative error of the worst document. bf16 rounds by 2e-3 (half of 2**-8), the backward pass more than once."""
_QUIET = 1e-2
"""A document with values below this share of the usual size is measured against it: some gradients are 0."""
_CHECKED = (1, 17, 640, 1390)
"""Tokens of the documents for the comparison of numbers; in the miniature a tenth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpeed:
    """One layer on one pack: seconds, and operations a second of forward and backward."""

    layer: str
    count: int
    """Layers of this kind in the model."""
    forward: float
    backward: float
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelReport:
    """Result of one kernel on one model and file of packs. Only a kernel that passed is timed."""

    backend: Kernel
    model: str
    packs: str
    checks: list[Check]
    speeds: list[LayerSpeed]
    passed: bool


def measure_attention(
    backend: Kernel, folder: str, packs: list[tuple[str, str]], sizes: Sizes
) -> Iterator[list[KernelReport]]:
    """Measure a kernel on every layer of each model and file of packs, in folder/model; the list grows."""
    device = torch.device(sizes.device)
    attend = attend_by(backend, device)
    reports = list[KernelReport]()
    for model, name in packs:
        layers = attention_layers(model_config(model, thin=sizes.thin), pack_file(Path(folder) / model, name)[0])
        checks = [check_layer(attend, layer, device, 10 if sizes.thin else 1) for layer in layers]
        passed = all(check.passed for check in checks)
        speeds = [_speed(attend, layer, device, sizes.repeats) for layer in layers] if passed else []
        reports.append(
            KernelReport(backend=backend, model=model, packs=name, checks=checks, speeds=speeds, passed=passed)
        )
        yield reports


def attend_by(backend: Kernel, device: torch.device) -> Attend:
    """The kernel of this name. NotHereError or ConfigError if this device cannot use it.

    flash-attn-3 and -4 replace torch's kernels for the rest of the process.
    """
    if backend == "varlen":
        # Also on a CPU, where the trainer's function calls the reference.
        return varlen_attention
    if backend == "cudnn":
        if device.type != "cuda":
            raise NotHereError("cudnn runs on a GPU")
        return nested_attention
    kernels.choose_kernels(KernelsConfig(attention=backend), kernels.this_machine(device, torch.bfloat16))
    return kernels.use_attention(backend)


def nested_attention(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """SDPA by cuDNN over torch's jagged tensors: cuDNN's form for many documents, which the trainer does not use."""
    groups = query.shape[1] // key.shape[1]
    cu_seqlens, max_length, scale, causal = documents
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(part, cu_seqlens, min_seqlen=1, max_seqlen=max_length).transpose(1, 2)
        for part in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
    )
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        output = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
    values: Tensor = output.transpose(1, 2).contiguous().values()
    return values


def check_layer(attend: Attend, layer: Layer, device: torch.device, shrink: int) -> Check:
    """Check the numbers of a kernel on a few documents, and on dense windows if the layer has some."""
    lengths = [-(-length // shrink) for length in _CHECKED]
    windows = min(layer.dense_windows, 3)
    longest = max(*lengths, layer.max_length) if not windows else layer.max_length
    if windows:  # the other windows of such a layer are narrower
        lengths = [min(length, longest) for length in lengths]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    small = replace(layer, cu_seqlens=cu_seqlens.to(device), dense_windows=windows, max_length=longest)
    (q, k, v), upstream = drawn(small, device)
    output = _call(attend, small, (q, k, v))
    computed = [output.detach(), *torch.autograd.grad(output, (q, k, v), upstream)]
    documents = [longest] * windows + lengths
    bounds = torch.tensor([0, *documents], device=device).cumsum(0).to(torch.int32)
    exact = [part.detach().float().requires_grad_() for part in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        output = reference_attention(exact[0], exact[1], exact[2], bounds, layer.width**-0.5, layer.causal)
        expected = [output.detach(), *torch.autograd.grad(output, exact, upstream.float())]
    errors = {name: _worst_document(a, b, documents) for name, a, b in zip(TOLERANCES, computed, expected, strict=True)}
    return check(layer.name, errors, TOLERANCES)


def drawn(layer: Layer, device: torch.device) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Random query, key, value [positions, heads, width] in bf16 that want gradients, and a gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        shape = (layer.positions, heads, layer.width)
        return torch.randn(shape, device=device, generator=generator).bfloat16()

    q, k, v = (draw(heads).requires_grad_() for heads in (layer.heads, layer.key_heads, layer.key_heads))
    return (q, k, v), draw(layer.heads)


def _speed(attend: Attend, layer: Layer, device: torch.device, repeats: int) -> LayerSpeed:
    layer = replace(layer, cu_seqlens=layer.cu_seqlens.to(device))
    inputs, upstream = drawn(layer, device)
    forward = median_seconds(lambda: _call(attend, layer, inputs), device, repeats)
    both = median_seconds(lambda: torch.autograd.grad(_call(attend, layer, inputs), inputs, upstream), device, repeats)
    rate = 3 * layer.flops / both
    return LayerSpeed(layer=layer.name, count=layer.count, forward=forward, backward=both - forward, flops=rate)


def _call(attend: Attend, layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    documents = Documents(layer.cu_seqlens, layer.max_length, layer.width**-0.5, layer.causal)
    return with_windows(attend, layer.dense_windows, *inputs, documents)


def _worst_document(computed: Tensor, expected: Tensor, lengths: list[int]) -> float:
    typical = float(expected.square().mean().sqrt())
    documents = zip(computed.split_with_sizes(lengths), expected.split_with_sizes(lengths), strict=True)
    return max(relative_error(a, b, _QUIET * typical * b.numel() ** 0.5) for a, b in documents)
