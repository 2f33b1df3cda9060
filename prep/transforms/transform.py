"""What a transform is: a pure function of a record, its settings, and what the chain gives it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lmms.configs.contract.hashing import key64
from lmms.prep.records.parts import Image
from lmms.prep.records.record import Record


@dataclass(frozen=True, slots=True)
class Draws:
    """Numbers that look random and are the same in every build: hashes of a key and of what is drawn."""

    key: tuple[str | int, ...]
    """Seed of the build, name of the source, row, and the places of the transform and of the copy."""

    def uniform(self, what: str, low: float = 0.0, high: float = 1.0) -> float:
        """A number from low to below high. what: a name, another one for each number that a transform draws."""
        return low + (high - low) * (key64(*self.key, what) / 2**64)

    def choice(self, what: str, count: int) -> int:
        """A whole number from 0 to below count."""
        return key64(*self.key, what) * count >> 64


@dataclass(frozen=True, slots=True)
class Context:
    """All that a transform may use besides the record and its settings."""

    draws: Draws
    measured: Callable[[Image], Image]
    """The picture with its bytes and its size. Raises Reject."""


Apply: TypeAlias = Callable[[Record, Any, Context], Sequence[Record]]
"""A record, the settings of the transform -> the records in its place. Raises Reject."""
