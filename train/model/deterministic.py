"""The setting `deterministic`: the same run on the same machines gives the same bits.

The order of packs, random numbers and the sums over ranks' shares are fixed in any case. What is not, without this, is
the order in which a GPU adds: atomics in the backward of attention and of scattered rows, cuBLAS's workspaces, the
reductions of NCCL in a switch, and kernels that a compiler chooses by timing them.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch.nn.attention import varlen

from lmms.configs.errors import ConfigError
from lmms.configs.settings.kernels import KernelsConfig
from lmms.configs.settings.train import TrainConfig
from lmms.train.model.kernels import Kernels

_VARIABLES: Mapping[str, tuple[str, ...]] = {
    # cuBLAS documentation, 2.1.4 "Results Reproducibility"
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    # what Megatron-LM's --deterministic-mode takes; torch sets the first where none is set (ProcessGroupNCCL.cpp)
    "NCCL_ALGO": ("^NVLS", "Ring", "Tree", "CollnetDirect", "CollnetChain"),
}
"""What libraries read when they start -> the values with which they are deterministic, the first is set here."""


@contextmanager
def deterministic(config: TrainConfig) -> Iterator[None]:
    """Within it, if the settings ask for it, torch takes deterministic ways alone, also in the code that it compiles.

    To be entered before CUDA starts: cuBLAS and NCCL read their variables then. ConfigError where one of them has
    another value, where CUDA has started without, and for an operation that has no deterministic way.
    """
    if not config.deterministic:
        yield
        return
    if config.device != "cpu":
        _set_variables()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with ExitStack() as held:
        if config.kernels.compile:
            from torch._inductor import config as inductor

            # It would choose kernels by timing them.
            held.enter_context(inductor.patch(deterministic=True))
        # torch's own attention reads this, and passes it on to flash-attn 3 and 4.
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        try:
            yield
        except RuntimeError as error:
            found, told, _ = str(error).partition(", but you set 'torch.use_deterministic_algorithms")
            if not told:
                raise
            raise ConfigError(f"deterministic is true, but {found}; set deterministic: false") from error
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def deterministic_kernels(config: TrainConfig) -> KernelsConfig:
    """The setting `kernels` of a run: without Liger if it is to be deterministic, since torch cannot look into it."""
    return replace(config.kernels, liger="off") if config.deterministic else config.kernels


def refuse_cudnn(config: TrainConfig, kernels: Kernels, device: torch.device) -> None:
    """ConfigError where torch's attention would go to cuDNN in a run that is to be deterministic.

    From 2.14 on it does so on GPUs of 9.x and 10.x; cuDNN's backward is not deterministic, as torch's own choice for
    SDPA says (check_cudnn_deterministic in sdp_utils.cpp), but its varlen_attn does not ask.
    """
    goes = getattr(varlen, "_should_use_cudnn", lambda index: False)
    if config.deterministic and kernels.attention == "varlen" and device.type == "cuda" and goes(device.index):
        raise ConfigError(
            f"deterministic is true, but attention varlen runs on cuDNN here (torch {torch.__version__}), whose"
            " backward is not deterministic; set kernels.attention: flash-attn-2, flash-attn-3, flash-attn-4 or sdpa"
        )


def _set_variables() -> None:
    for name, values in _VARIABLES.items():
        if name not in os.environ and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise ConfigError(
                f"deterministic is true, but CUDA has started in this process without {name}; set it to {values[0]}"
                " before, or start the run in a process of its own"
            )
        found = os.environ.setdefault(name, values[0])
        if found not in values:
            raise ConfigError(
                f"deterministic is true, but {name} is {found!r} in the environment, expected one of"
                f" {', '.join(values)}; unset it, or set deterministic: false"
            )
