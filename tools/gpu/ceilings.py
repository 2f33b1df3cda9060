"""What this card can do at most: matrix products of a model's own shapes, and moving bytes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmms.train.parallel.world import compute_dtype
from tools.gpu.models import model_config
from tools.gpu.packs import pack_file
from tools.gpu.shapes import Product, body_products, head_product, rows_of
from tools.gpu.sizes import Sizes
from tools.gpu.timing import median_seconds, synchronize

_SUSTAINED_S = 3.0
"""A card that is hot runs slower than one that has just begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Bests of this machine. flops: operations a second; bandwidths: bytes a second."""

    matmul_flops: float
    """One large product of random numbers."""
    sustained_flops: float
    """The same after seconds of nothing else: what a training step can hope for."""
    copy: float
    """Device to device; a byte that is read and written counts twice."""
    to_device: float
    """From pinned memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductSpeed:
    """One product of a model: seconds of each of the three that a training step takes of it."""

    shape: str
    """rows x inputs x outputs"""
    layers: int
    """That have it."""
    again: bool
    """See shapes.Product."""
    head: bool
    forward: float
    input_grad: float
    weight_grad: float
    flops: float
    """Operations a second of the three together."""


def measure_ceilings(sizes: Sizes) -> Iterator[Ceilings]:
    """The card itself."""
    device = torch.device(sizes.device)
    side = 256 if sizes.thin else 8192
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    work = 2.0 * side**3
    short = median_seconds(lambda: a @ b, device, sizes.repeats)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < (0.05 if sizes.thin else _SUSTAINED_S):
        for _ in range(sizes.repeats):
            a @ b
        synchronize(device)
        count += sizes.repeats
    sustained = (time.perf_counter() - began) / count
    size = 2**20 if sizes.thin else 2**31
    source, target = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    copied = median_seconds(lambda: target.copy_(source), device, sizes.repeats)
    pinned = torch.empty(size // 16, dtype=torch.uint8, pin_memory=device.type == "cuda")
    sent = median_seconds(lambda: target[: len(pinned)].copy_(pinned, non_blocking=True), device, sizes.repeats)
    yield Ceilings(
        matmul_flops=work / short,
        sustained_flops=work / sustained,
        copy=2 * size / copied,
        to_device=len(pinned) / sent,
    )


def measure_products(model: str, packs: str, folder: str, sizes: Sizes) -> Iterator[list[ProductSpeed]]:
    """Every product of a model on a pack of a file, in the type that it is trained in."""
    config = model_config(model, thin=sizes.thin)
    rows = rows_of(pack_file(folder, packs)[0])
    device = torch.device(sizes.device)
    dtype, head = compute_dtype(sizes.precision, device), head_product(config, rows)
    layers = {head: 1, **body_products(config, rows)}
    yield [_speed(one, layers[one], one is head, device, dtype, sizes.repeats) for one in layers]


def _speed(
    product: Product, layers: int, head: bool, device: torch.device, dtype: torch.dtype, repeats: int
) -> ProductSpeed:
    def drawn(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype)

    inputs, weight = drawn(product.rows, product.inputs), drawn(product.outputs, product.inputs)
    grad = drawn(product.rows, product.outputs)
    forward, input_grad, weight_grad = (
        median_seconds(run, device, repeats)
        for run in (lambda: inputs @ weight.T, lambda: grad @ weight, lambda: grad.T @ inputs)
    )
    return ProductSpeed(
        shape=product.shape,
        layers=layers,
        again=product.again,
        head=head,
        forward=forward,
        input_grad=input_grad,
        weight_grad=weight_grad,
        flops=3 * product.flops / (forward + input_grad + weight_grad),
    )
