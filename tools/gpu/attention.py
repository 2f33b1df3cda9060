"""The attention seam in bf16 against fp32, forward and backward, for the shapes of the models that are trained."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmms.train.attention import reference_attention, varlen_attention
from lmms.train.families.qwen2_5_vl import tower_inputs
from lmms.train.families.vision import Tower
from tools.gpu.compare import Check, check, relative_error

TOLERANCES = {"output": 1e-2, "query": 2e-2, "key": 2e-2, "value": 2e-2}
"""Relative error of the worst document. bf16 rounds by 2e-3 (half of 2**-8), the backward pass more than once."""
_QUIET = 1e-2
"""A document whose values are below this share of the usual size is measured against that: some gradients are 0."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One attention layer of a model."""

    name: str
    heads: int
    key_heads: int
    width: int
    causal: bool


LANGUAGE = (Shape("Qwen2.5-VL-3B language", 16, 2, 128, True), Shape("Qwen3-VL-2B language", 16, 8, 128, True))
WINDOWS = (Shape("Qwen2.5-VL-3B windows", 16, 16, 80, False),)
IMAGES = (
    Shape("Qwen2.5-VL-3B images", 16, 16, 80, False),
    Shape("Qwen3-VL-2B images", 16, 16, 64, False),
    Shape("Qwen3-VL-8B images", 16, 16, 72, False),
)


def check_attention() -> Iterator[Check]:
    """A check for each shape: on a GPU with documents of up to thousands of positions, else with short ones."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    documents = torch.tensor([1, 17, 640, 2048, 1390] if on_gpu else [1, 17, 64, 46])
    grids = torch.tensor([[1, 66, 94], [1, 34, 28]] if on_gpu else [[1, 10, 14], [1, 4, 6]])
    tower = tower_inputs(grids, Tower(patch_size=14, merge_size=2, window_size=112))
    images, windows = tower["cu_seqlens"], tower["cu_window_seqlens"]
    assert isinstance(images, Tensor)
    assert isinstance(windows, Tensor)
    for shapes, lengths in ((LANGUAGE, documents), (WINDOWS, windows.diff()), (IMAGES, images.diff())):
        for shape in shapes:
            yield _check(shape, lengths.tolist(), device)


def _check(shape: Shape, lengths: list[int], device: torch.device) -> Check:
    generator = torch.Generator(device).manual_seed(0)

    def draw(heads: int) -> Tensor:
        return torch.randn(sum(lengths), heads, shape.width, device=device, generator=generator).bfloat16()

    inputs = draw(shape.heads), draw(shape.key_heads), draw(shape.key_heads)
    upstream, scale = draw(shape.heads), shape.width**-0.5
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
    q, k, v = (tensor.clone().requires_grad_() for tensor in inputs)
    output = varlen_attention(q, k, v, cu_seqlens, max(lengths), scale, shape.causal)
    found = [output.detach(), *torch.autograd.grad(output, (q, k, v), upstream)]
    q, k, v = (tensor.float().requires_grad_() for tensor in inputs)
    with sdpa_kernel(SDPBackend.MATH):
        output = reference_attention(q, k, v, cu_seqlens, scale, shape.causal)
        expected = [output.detach(), *torch.autograd.grad(output, (q, k, v), upstream.float())]
    errors = {name: _worst_document(a, b, lengths) for name, a, b in zip(TOLERANCES, found, expected, strict=True)}
    return check(f"attention, {shape.name}", errors, TOLERANCES)


def _worst_document(found: Tensor, expected: Tensor, lengths: list[int]) -> float:
    typical = float(expected.square().mean().sqrt())
    documents = zip(found.split_with_sizes(lengths), expected.split_with_sizes(lengths), strict=True)
    return max(relative_error(a, b, _QUIET * typical * b.numel() ** 0.5) for a, b in documents)
