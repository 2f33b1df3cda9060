"""What differs from one family's chat template to the next, as one frozen value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmms.prep.records.record import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """All that prep knows of a family, besides family_facts."""

    template_messages: Callable[[Record], list[dict[str, Any]]]
    """A record -> the `messages` of the chat template. Raises Reject for a record that the family cannot read."""
    turn_start: str
    """The special token that opens a turn; the role follows, then a line break."""
    turn_end: str
    """The special token that closes a turn, which the model learns to end with."""
