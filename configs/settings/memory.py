"""Values kept for backward, and the place for them: the section `memory` of a run file."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lmms.configs.errors import ConfigError
from lmms.configs.ranges import Range
from lmms.configs.typed import check_fields

Recompute = Literal["none", "elementwise", "full"]
"""Values of a block that backward computes again instead of keeping them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """Values of a forward pass kept for backward, and the place for them. These settings do not change its results."""

    recompute: Recompute = "full"
    """What backward computes again of each block: nothing (none), all but matrix products and attention (elementwise),
    or everything, from the block's inputs (full)."""
    recompute_vision: Recompute | None = None
    """The same for the blocks of the towers, vision and audio. Default: as recompute."""
    offload_activations_gb: Annotated[float, Range(0)] = 0.0
    """GB (1e9) of pinned main memory a rank for the values that blocks keep, first those that wait longest. 0: none.
    With recompute: elementwise only if blocks are compiled (kernels.compile)."""

    def __post_init__(self) -> None:
        check_fields(self, "memory")

    @property
    def vision(self) -> Recompute:
        """Values of the towers' blocks that backward computes again."""
        return self.recompute_vision or self.recompute

    @property
    def offload_bytes(self) -> int:
        """Bytes of main memory for each rank."""
        return int(self.offload_activations_gb * 1e9)


def check_activations(offload_bytes: int, device: str) -> None:
    """ConfigError for activations that are to leave a device without separate memory."""
    if offload_bytes and device != "cuda":
        raise ConfigError(
            f"memory.offload_activations_gb is {offload_bytes / 1e9:g}, but this run is on {device}, whose memory is"
            " main memory; set it to 0"
        )


def check_recompute(memory: MemoryConfig, compiled: bool) -> None:
    """ConfigError for offloading with elementwise and uncompiled blocks, whose kept values cannot leave the device."""
    settings = {"memory.recompute": memory.recompute, "memory.recompute_vision": memory.vision}
    name = next((name for name, value in settings.items() if value == "elementwise"), None)
    if memory.offload_bytes and name and not compiled:
        raise ConfigError(
            f"{name} is elementwise and memory.offload_activations_gb {memory.offload_activations_gb:g}, but what an"
            f" uncompiled block keeps then cannot be moved; set {name}: full (or none), kernels.compile: true, or"
            " memory.offload_activations_gb: 0"
        )
