"""The setting `deterministic`: the same run on the same machines gives the same bits.

The order of packs, random numbers and the sums over ranks' shares are fixed in any case. Without this setting, the
order in which a GPU adds is not fixed: atomics in the backward of attention and of scattered rows, cuBLAS's workspaces,
the reductions of NCCL in a switch, and kernels that a compiler chooses by timing them.
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
    # what Megatron-LM's --deterministic-mode takes; torch sets the first value by default (ProcessGroupNCCL.cpp)
    "NCCL_ALGO": ("^NVLS", "Ring", "Tree", "CollnetDirect", "CollnetChain"),
}
"""Variables that libraries read at their start -> the values that make them deterministic; the first is set here."""


@contextmanager
def deterministic(config: TrainConfig) -> Iterator[None]:
    """A context in which torch runs deterministic kernels alone, in compiled code too, if the settings ask for that.

    To be entered before CUDA starts: cuBLAS and NCCL read their variables then. ConfigError where such a variable has
    another value, where CUDA has started without it, and for an operation that has no deterministic kernel.
    """
    if not config.deterministic:
        yield
        return
    if config.device != "cpu":
        _set_variables()
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with ExitStack() as switched:
        if config.kernels.compile:
            from torch._inductor import config as inductor

            # The compiler would choose kernels by timing them.
            switched.enter_context(inductor.patch(deterministic=True))
        # torch's attention reads this flag, and passes it on to flash-attn 3 and 4.
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        try:
            yield
        except RuntimeError as error:
            refusal, told, _ = str(error).partition(", but you set 'torch.use_deterministic_algorithms")
            if not told:
                raise
            raise ConfigError(f"deterministic is true, but {refusal}; set deterministic: false") from error
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def deterministic_kernels(config: TrainConfig) -> KernelsConfig:
    """The setting `kernels` of a run: without Liger if it is to be deterministic, since torch cannot look into it."""
    return replace(config.kernels, liger="off") if config.deterministic else config.kernels


def refuse_cudnn(config: TrainConfig, kernels: Kernels, device: torch.device) -> None:
    """ConfigError where torch's attention would go to cuDNN in a run that is to be deterministic.

    torch does so from 2.14 on, on GPUs of 9.x and 10.x. cuDNN's backward is not deterministic: torch's choice for SDPA
    asks for that (check_cudnn_deterministic in sdp_utils.cpp), but varlen_attn does not.
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
        value = os.environ.setdefault(name, values[0])
        if value not in values:
            raise ConfigError(
                f"deterministic is true, but {name} is {value!r} in the environment, expected one of"
                f" {', '.join(values)}; unset it, or set deterministic: false"
            )
