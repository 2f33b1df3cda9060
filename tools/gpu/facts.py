"""What this machine and its libraries are."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import transformers

from lmms.train.plan.cards import peak_flops

_OPTIONAL = ("flash_attn", "flash_attn_interface", "liger_kernel", "triton", "torchao", "peft")


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
    peak_flops: float | None
    """Dense bf16 operations a second by the data sheet; None where lmms has none."""
    cpus: int
    python: str
    torch: str
    transformers: str
    installed: list[str]
    """Of the packages that are used where they are there."""


def read_facts() -> Iterator[Facts]:
    """Starts CUDA where there is one."""
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
