"""The setting `deterministic`: the same run twice, on the same machines and ranks, gives the same bits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lmms.configs.errors import ConfigError

_WORKSPACES = (":4096:8", ":16:8")
"""Values of CUBLAS_WORKSPACE_CONFIG with which cuBLAS is deterministic (cuBLAS documentation, 2.1.4)."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, if wanted, torch takes deterministic ways alone, and raises RuntimeError where it has none.

    Its own attention is told, and tells flash-attn 3 and 4; attention.py tells flash-attn 2. To be entered before CUDA
    starts: cuBLAS reads its variable then. ConfigError where that has another value.
    """
    if not wanted:
        yield
        return
    workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _WORKSPACES[0])
    if workspace not in _WORKSPACES:
        raise ConfigError(
            f"deterministic is true, but CUBLAS_WORKSPACE_CONFIG is {workspace!r}, expected one of"
            f" {', '.join(_WORKSPACES)}; unset it, or set deterministic: false"
        )
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
