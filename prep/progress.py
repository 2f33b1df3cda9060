"""How far a build is, for whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is. `done` and `total` are bytes of input (reading) or packs (writing)."""

    stage: str
    done: int
    total: int
    records: int
    tokens: int
    rejected: int


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """A Report that says nothing."""
