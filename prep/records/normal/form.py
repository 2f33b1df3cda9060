"""What a form is: the columns that another system writes, how to know such records, and how to read them."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lmms.configs.settings.sources import Role
from lmms.prep.records.document import DocumentKind
from lmms.prep.reject import Reject

Roles: TypeAlias = Mapping[str, Role]
"""Role names of the records -> ours, as the user set them."""

_MESSAGE = re.compile(r"messages\[(\d+)\](.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Normal:
    """A record in one of two forms: `messages` with what belongs to them, or text for parse_document."""

    record: Mapping[str, Any]
    places: tuple[str, ...] = ()
    """Place of each message in the record as it was; empty: where parse_record finds the message."""
    document: DocumentKind | None = None
    """Which columns are text without turns, for parse_document; None: a conversation."""
    has_same_parts: bool = False
    """Whether every message has the content that it had in the record: a place within the content is the same."""

    def original(self, place: str) -> str:
        """The place in the record as it was, for a place in this record."""
        match = _MESSAGE.fullmatch(place)
        if match is None or int(match[1]) >= len(self.places):
            return place
        place = self.places[int(match[1])]
        return place + match[2] if self.has_same_parts and place.endswith("]") else place

    def located(self, reject: Reject) -> Reject:
        """The same reject, with the place in the record as it was."""
        return Reject(reject.reason, reject.message, self.original(reject.place)) if self.places else reject


@dataclass(frozen=True, slots=True)
class Form:
    """How the records of one system are read."""

    columns: tuple[str, ...]
    """Columns that are read, beside those that every form leaves to the parsers: see columns_read."""
    fits: Callable[[Mapping[str, Any]], bool]
    """Whether a record can be one of this form."""
    read: Callable[[Mapping[str, Any], Roles], Normal]
    """The record in normal form; a role that the user's setting names stays as written. Raises Reject."""
    marks: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether a record has what only this form has; None: every record that fits."""

    def is_marked(self, record: Mapping[str, Any]) -> bool:
        """Whether the record has what only this form has."""
        return (self.marks or self.fits)(record)


def renamed(raw: Mapping[str, Any], read: tuple[str, ...], **made: Any) -> dict[str, Any]:
    """A record of what a form made, and of the columns that the form did not read."""
    return {**{name: value for name, value in raw.items() if name not in read}, **made}
