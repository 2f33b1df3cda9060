"""What this machine and its libraries are, and how fast it multiplies."""

import os
import platform
import time
from dataclasses import dataclass

import torch
import transformers

from lmms.train.flops import peak_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """Of the first GPU, or of the CPU where there is none."""

    device: str
    cuda: str | None
    """Version that torch was built for; None without a GPU."""
    cudnn: int | None
    capability: str | None
    memory: int | None
    """Bytes of the GPU."""
    cpus: int
    python: str
    torch: str
    transformers: str
    peak_flops: float | None
    """Dense bf16 operations a second by the data sheet; None for a device that is not in the table: then no MFU."""
    matmul_flops: float
    """Operations a second of one large bf16 product, measured here on random numbers: what can be hoped for."""


def read_facts() -> Facts:
    """Takes a second or two of the GPU."""
    on_gpu = torch.cuda.is_available()
    gpu = torch.cuda.get_device_properties(0) if on_gpu else None
    return Facts(
        device=gpu.name if gpu else "cpu",
        cuda=torch.version.cuda if on_gpu else None,
        cudnn=torch.backends.cudnn.version() if on_gpu else None,
        capability=f"{gpu.major}.{gpu.minor}" if gpu else None,
        memory=gpu.total_memory if gpu else None,
        cpus=os.cpu_count() or 1,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        peak_flops=peak_flops(gpu.name) if gpu else None,
        matmul_flops=_matmul_flops(torch.device("cuda"), 8192) if on_gpu else _matmul_flops(torch.device("cpu"), 512),
    )


def _matmul_flops(device: torch.device, size: int) -> float:
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    rounds = 20
    for _ in range(3):
        a @ b
    synchronize(device)
    began = time.perf_counter()
    for _ in range(rounds):
        a @ b
    synchronize(device)
    return 2 * size**3 * rounds / (time.perf_counter() - began)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
