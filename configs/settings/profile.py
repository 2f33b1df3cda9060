"""What a run records of its own speed and memory: the section `profile` of a run file."""

from dataclasses import dataclass, fields
from typing import Annotated

from lmms.configs.errors import ConfigError
from lmms.configs.ranges import Range
from lmms.configs.typed import check_fields


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileConfig:
    """A window of steps under torch's profiler; its files go to output/profile. Outside of it nothing is recorded."""

    start: Annotated[int, Range(2, advice="the step before warms the profiler up")] | None = None
    """First step of the window, counted from where the process starts: 10 is the tenth step that it takes, also after a
    resume. At least 2, since the profiler warms up in the step before. Default: nothing is profiled."""
    steps: Annotated[int, Range(1)] = 3
    """Steps in the window."""
    ranks: tuple[Annotated[int, Range(0)], ...] = (0,)
    """Ranks that write theirs; each takes time and tens of megabytes, while the others wait."""
    memory: bool = False
    """Also record every allocation on the GPU in the window, for pytorch.org/memory_viz."""
    stacks: bool = False
    """Also record the Python stack of every operation, as lines for a flame graph; makes the window slower."""
    oom_stacks: bool = False
    """Record from the first step on which code allocates what on the GPU: the snapshot that is always written when
    memory runs out then says so."""

    def __post_init__(self) -> None:
        check_fields(self, "profile")
        if not self.ranks or len(set(self.ranks)) < len(self.ranks):
            raise ConfigError(f"profile.ranks is {list(self.ranks)}, expected one or more ranks from 0 on, each once")
        of_window = [field for field in fields(self) if field.name not in ("start", "oom_stacks")]
        for field in of_window if self.start is None else ():
            if getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"profile.{field.name} is set, but profile.start is not; set it to the first step of the window"
                )
