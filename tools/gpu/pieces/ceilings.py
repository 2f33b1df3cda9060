"""This machine: its facts, and the most that it can do: products of a model's own shapes, and moving bytes."""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import transformers
from torch import Tensor

from lmms.train.parallel.world import compute_dtype
from lmms.train.plan.cards import peak_flops
from tools.gpu.pieces.measuring import median_seconds, synchronize
from tools.gpu.pieces.models import Sizes, model_config
from tools.gpu.pieces.packs import pack_file
from tools.gpu.pieces.shapes import Product, body_products, head_product, rows_of

_OPTIONAL = ("flash_attn", "flash_attn_interface", "liger_kernel", "triton", "torchao", "peft")
_SUSTAINED_S = 3.0
"""A hot card runs slower than a cold card."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The first GPU, or the CPU where there is none, and the libraries."""

    device: str
    cuda: str | None
    """Version that torch was built for; None without a GPU."""
    cudnn: int | None
    capability: str | None
    memory: int | None
    """Bytes of the GPU."""
    peak_flops: float | None
    """Dense bf16 operations a second by the data sheet; None if lmms has no data sheet of the GPU."""
    cpus: int
    python: str
    torch: str
    transformers: str
    installed: list[str]
    """Optional packages that are installed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """Best rates of this machine. flops: operations a second; bandwidths: bytes a second."""

    matmul_flops: float
    """One large product of random numbers."""
    sustained_flops: float
    """The same product after seconds of nothing else: the most that a training step can reach."""
    copy: float
    """Device to device; a byte that is read and written counts twice."""
    to_device: float
    """Host to device, from pinned memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductSpeed:
    """One product of a model: seconds of its forward and of its two products in backward."""

    shape: str
    """rows x inputs x outputs"""
    layers: int
    """Layers with this product."""
    again: bool
    """Product.again."""
    head: bool
    forward: float
    input_grad: float
    weight_grad: float
    flops: float
    """Operations a second of the three together."""


def read_facts() -> Iterator[Facts]:
    """Facts of this machine and its libraries. Starts CUDA if there is a GPU."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    if gpu:
        torch.zeros((), device="cuda")
    yield Facts(
        device=gpu.name if gpu else "cpu",
        cuda=torch.version.cuda if gpu else None,
        cudnn=torch.backends.cudnn.version() if gpu else None,  # type: ignore[no-untyped-call]
        capability=f"{gpu.major}.{gpu.minor}" if gpu else None,
        memory=gpu.total_memory if gpu else None,
        peak_flops=peak_flops(gpu.name) if gpu else None,
        cpus=os.cpu_count() or 1,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        installed=[name for name in _OPTIONAL if find_spec(name)],
    )


def measure_ceilings(sizes: Sizes) -> Iterator[Ceilings]:
    """Measure the rates of the card itself."""
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
    """Measure every product of a model on a pack of a file, in the compute type of training."""
    config = model_config(model, thin=sizes.thin)
    rows = rows_of(pack_file(folder, packs)[0])
    head = head_product(config, rows)
    layers = {head: 1, **body_products(config, rows)}
    yield [_speed(product, layers[product], product is head, sizes) for product in layers]


def _speed(product: Product, layers: int, head: bool, sizes: Sizes) -> ProductSpeed:
    device = torch.device(sizes.device)
    dtype = compute_dtype(sizes.precision, device)

    def drawn(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, device=device, dtype=dtype)

    inputs, weight = drawn(product.rows, product.inputs), drawn(product.outputs, product.inputs)
    grad = drawn(product.rows, product.outputs)
    forward, input_grad, weight_grad = (
        median_seconds(run, device, sizes.repeats)
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
