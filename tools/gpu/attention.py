"""An attention kernel in bf16 against fp32, then its speed, on the layers of the models that are trained."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmms.train.model.attention import Attend, reference_attention, with_windows
from tools.gpu.backends import Backend, attend_by
from tools.gpu.compare import Check, check, relative_error
from tools.gpu.layers import Layer, attention_layers
from tools.gpu.models import model_config
from tools.gpu.packs import pack_file
from tools.gpu.sizes import Sizes
from tools.gpu.timing import median_seconds

TOLERANCES = {"output": 1e-2, "query": 2e-2, "key": 2e-2, "value": 2e-2}
"""Relative error of the worst document. bf16 rounds by 2e-3 (half of 2**-8), the backward pass more than once."""
_QUIET = 1e-2
"""A document whose values are below this share of the usual size is measured against that: some gradients are 0."""
_CHECKED = (1, 17, 640, 1390)
"""Lengths in tokens of the documents that numbers are compared on; in the miniature a tenth."""


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
class KernelFound:
    """What one kernel came to on one model and file of packs. Only one that passed is timed."""

    backend: str
    model: str
    packs: str
    checks: list[Check]
    speeds: list[LayerSpeed]
    passed: bool


def measure_attention(
    backend: Backend, folder: str, packs: list[tuple[str, str]], sizes: Sizes
) -> Iterator[list[KernelFound]]:
    """On every layer of each model and file of its packs, in folder/model; the list grows."""
    device = torch.device(sizes.device)
    attend = attend_by(backend, device)
    found = list[KernelFound]()
    for model, name in packs:
        layers = attention_layers(model_config(model, thin=sizes.thin), pack_file(Path(folder) / model, name)[0])
        checks = [check_layer(attend, layer, device, 10 if sizes.thin else 1) for layer in layers]
        passed = all(one.passed for one in checks)
        speeds = [_speed(attend, layer, device, sizes.repeats) for layer in layers] if passed else []
        found.append(KernelFound(backend=backend, model=model, packs=name, checks=checks, speeds=speeds, passed=passed))
        yield found


def check_layer(attend: Attend, layer: Layer, device: torch.device, shrink: int) -> Check:
    """The numbers of a kernel on a few documents, and on dense windows where the layer has some."""
    lengths = [-(-length // shrink) for length in _CHECKED]
    windows = min(layer.dense_windows, 3)
    longest = max(*lengths, layer.max_length) if not windows else layer.max_length
    if windows:  # the rest of a layer with windows are narrower ones
        lengths = [min(length, longest) for length in lengths]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    small = replace(layer, cu_seqlens=cu_seqlens.to(device), dense_windows=windows, max_length=longest)
    (q, k, v), upstream = drawn(small, device)
    output = _call(attend, small, (q, k, v))
    found = [output.detach(), *torch.autograd.grad(output, (q, k, v), upstream)]
    documents = [longest] * windows + lengths
    bounds = torch.tensor([0, *documents], device=device).cumsum(0).to(torch.int32)
    exact = [part.detach().float().requires_grad_() for part in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        output = reference_attention(exact[0], exact[1], exact[2], bounds, layer.width**-0.5, layer.causal)
        expected = [output.detach(), *torch.autograd.grad(output, exact, upstream.float())]
    errors = {name: _worst_document(a, b, documents) for name, a, b in zip(TOLERANCES, found, expected, strict=True)}
    return check(layer.name, errors, TOLERANCES)


def drawn(layer: Layer, device: torch.device) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Random query, key, value [positions, heads, width] in bf16 that want gradients, and one of the output."""
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

    def both() -> None:
        torch.autograd.grad(_call(attend, layer, inputs), inputs, upstream)

    backward = median_seconds(both, device, repeats) - forward
    return LayerSpeed(
        layer=layer.name,
        count=layer.count,
        forward=forward,
        backward=backward,
        flops=3 * layer.flops / (forward + backward),
    )


def _call(attend: Attend, layer: Layer, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    scale, bounds = layer.width**-0.5, layer.cu_seqlens
    return with_windows(attend, layer.dense_windows, *inputs, bounds, layer.max_length, scale, layer.causal)


def _worst_document(found: Tensor, expected: Tensor, lengths: list[int]) -> float:
    typical = float(expected.square().mean().sqrt())
    documents = zip(found.split_with_sizes(lengths), expected.split_with_sizes(lengths), strict=True)
    return max(relative_error(a, b, _QUIET * typical * b.numel() ** 0.5) for a, b in documents)
