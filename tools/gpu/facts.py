"""What this machine and its libraries are, and how fast it multiplies."""

import os
import platform
import time
from dataclasses import dataclass

import torch
import transformers


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
    matmul_flops: float
    """Operations a second of one large bf16 product of random numbers, measured here: what can be hoped for."""


def read_facts() -> Facts:
    """Takes about a second."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Facts(
        device=gpu.name if gpu else "cpu",
        cuda=torch.version.cuda if gpu else None,
        cudnn=torch.backends.cudnn.version() if gpu else None,  # type: ignore[no-untyped-call]
        capability=f"{gpu.major}.{gpu.minor}" if gpu else None,
        memory=gpu.total_memory if gpu else None,
        cpus=os.cpu_count() or 1,
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        matmul_flops=_matmul_flops(torch.device("cuda"), 8192) if gpu else _matmul_flops(torch.device("cpu"), 256),
    )


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    return 2.0 * size**3 * rounds / (time.perf_counter() - began)
