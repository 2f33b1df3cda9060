"""The range of a number that a user may set, as a part of its type: Annotated[int, Range(1)]."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

MOST_SECONDS = 1e7
"""Four months."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `least` to `most`, both included; `above` and `below` are bounds that are not included."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    advice: str = ""
    """Advice to a user who set a number outside of the range, at the end of the error message."""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        """The range in words, to follow the word "expected"."""
        if self.most < math.inf:
            return f"{self.least:,.10g} to {self.most:,.10g}"
        low = f"above {self.above:,.10g}" if self.above > -math.inf else f"at least {self.least:,.10g}"
        return low if self.below == math.inf else f"{low} and below {self.below:,.10g}"


def bounds_of(metadata: Iterable[object]) -> Range:
    """The range in the metadata of an Annotated type."""
    return next(item for item in metadata if isinstance(item, Range))
