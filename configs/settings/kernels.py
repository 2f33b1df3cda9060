"""Which kernels a model runs on: the section `kernels` of a run file."""

from dataclasses import dataclass
from typing import Literal

from lmms.configs.errors import ConfigError
from lmms.configs.typed import check_fields

Attention = Literal["varlen", "flash-attn-2", "flash-attn-3", "flash-attn-4", "sdpa"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelsConfig:
    """Which kernels the model runs on. A run names its kernels at start; a kernel that cannot be used is an error."""

    attention: Literal["auto", Attention] = "auto"
    """varlen (in torch), flash-attn-2, -3, -4 (packages), or sdpa, which is slow; auto: varlen, on a CPU sdpa."""
    liger: Literal["auto", "on", "off"] = "auto"
    """Liger's norms, MLPs and rotations; auto: on a GPU with Liger installed, unless blocks are compiled."""
    compile: bool = False
    """Compile each block. Batches are then padded to a few shapes, so that only the first steps compile."""

    def __post_init__(self) -> None:
        check_fields(self, "kernels")
        if self.compile and self.liger == "on":
            raise ConfigError(
                "kernels.liger is on and kernels.compile is true, expected one of them: in a compiled block Liger's"
                " kernels would only stand between what the compiler fuses; set kernels.liger: auto"
            )
