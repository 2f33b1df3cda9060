"""The ranks that a launcher (torchrun, lmms train --nproc) announces in the environment, checked before a rank waits.

RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT: pytorch.org/docs/stable/elastic/run.html
"""

import os
from dataclasses import dataclass

from lmms.configs.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Launched:
    """This process among the ranks of its run."""

    rank: int
    size: int
    local_rank: int
    """Number of this rank among the ranks of this machine."""
    together: bool
    """Whether a launcher started this process; otherwise the process is alone."""


def launched() -> Launched:
    """What the environment says. ConfigError for half of it: the run would wait for ranks that nobody starts."""
    size = whole_number("WORLD_SIZE", 1, least=1)
    together = "RANK" in os.environ
    if not together and size > 1:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but RANK is not set, as a launcher sets both; start the ranks with torchrun or with"
            " --nproc, or unset WORLD_SIZE"
        )
    missing = [name for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if together and missing:
        raise ConfigError(
            f"RANK is set, but not {', '.join(missing)}, as a launcher sets all of them; start the ranks with torchrun"
            " or with --nproc, or unset RANK"
        )
    rank = whole_number("RANK", 0)
    if rank >= size:
        raise ConfigError(f"RANK is {rank}, expected 0 to {size - 1}, since WORLD_SIZE is {size}")
    return Launched(rank=rank, size=size, local_rank=whole_number("LOCAL_RANK", 0), together=together)


def whole_number(name: str, default: int, least: int = 0) -> int:
    """A number of the environment; the default where `name` is not set. ConfigError for anything else."""
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} is {text!r} in the environment, expected a whole number of at least {least}")
    return int(text)
