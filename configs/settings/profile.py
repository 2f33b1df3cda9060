"""Records of the speed and memory of a run: the section `profile` of a run file."""

from dataclasses import dataclass, fields
from typing import Annotated

from lmms.configs.errors import ConfigError
from lmms.configs.ranges import Range
from lmms.configs.typed import check_fields


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """A window of steps under torch's profiler; its files go to output/profile. No other step is recorded."""

    start: Annotated[int, Range(2, advice="the step before warms the profiler up")] | None = None
    """First step of the window, counted from the start of the process: 10 is its tenth step, also after a resume. At
    least 2, since the profiler warms up in the step before. Default: nothing is profiled."""
    steps: Annotated[int, Range(1)] = 3
    """Steps in the window."""
    ranks: tuple[Annotated[int, Range(0)], ...] = (0,)
    """Ranks that write a profile; each takes time and tens of megabytes, while the other ranks wait."""
    memory: bool = False
    """Also record every allocation on the GPU in the window, for pytorch.org/memory_viz."""
    stacks: bool = False
    """Also record the Python stack of every operation, as lines for a flame graph; makes the window slower."""
    oom_stacks: bool = False
    """Record which code allocates GPU memory, from the first step on, for the snapshot of a memory that runs out."""

    def __post_init__(self) -> None:
        check_fields(self, "profile")
        if not self.ranks or len(set(self.ranks)) < len(self.ranks):
            raise ConfigError(f"profile.ranks is {list(self.ranks)}, expected one or more ranks from 0 on, each once")
        window_fields = [field for field in fields(self) if field.name not in ("start", "oom_stacks")]
        for field in window_fields if self.start is None else ():
            if getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"profile.{field.name} is set, but profile.start is not; set it to the first step of the window"
                )
