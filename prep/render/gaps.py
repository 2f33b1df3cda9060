"""What a template writes between two texts of a conversation: learned from one shape, used for another.

Conversations with tools have nearly as many shapes as there are records, in other orders of the same turns. What stands
between two neighbouring texts follows from the two and the turns beside them, in the templates that have outlines. So
the text of a new shape is put together of gaps that other shapes have shown, where all of them are known, and the
template does not run. Only conversations of text have gaps, since a template may count pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, TypeAlias

from lmms.prep.records.parts import Text
from lmms.prep.records.record import Message, Record

Gaps: TypeAlias = dict[Any, str | None]
"""The place of a gap -> what stands there; None where two shapes differ, so that neither is believed."""

_MOST_GAPS = 65_536
_ENDS: Any = (None, None)
"""The begin and the end of a conversation."""


@dataclass(frozen=True, slots=True)
class Places:
    """The places of a shape in the order of its text."""

    numbers: list[int]
    """The numbers of its texts, as in its outline."""
    gaps: list[Any]
    """The place of each gap: before the first text, between texts, behind the last."""


def places_of(record: Record, ends: Sequence[tuple[str, str]]) -> Places | None:
    """The gaps of a record's shape; None where a gap may follow from more than its neighbours.

    ends: white space around each text, which a template may cut off.
    """
    if record.template_options:
        return None
    number, roles = count(), [None, *(message.role for message in record.messages), None]
    last_query = max((i for i, message in enumerate(record.messages) if message.role == "user"), default=-1)
    of_tools = [(next(number), ("tool", i == 0, i + 1 == len(record.tools))) for i in range(len(record.tools))]
    of_messages = []
    for i, message in enumerate(record.messages):
        about = (*roles[i : i + 3], bool(message.content), message.reasoning is None, bool(message.calls))
        slots = _slots(message, (*about, type(message.content), i > last_query), number)
        if not slots:
            return None
        of_messages.append(slots)
    if record.messages[0].role == "system":
        of_messages.insert(1, of_tools)
    else:
        of_messages.insert(0, of_tools)
    in_order = [slot for slots in of_messages for slot in slots]
    whole = (bool(record.tools), record.reasoning, record.messages[0].role)
    around = [_ENDS, *((slot, ends[i]) for i, slot in in_order), _ENDS]
    return Places([i for i, _ in in_order], [(whole, *pair) for pair in pairwise(around)])


def _slots(message: Message, about: tuple[Any, ...], number: "count[int]") -> list[tuple[int, Any]]:
    """(number, what it is) of each text of a message, in the order of the text; none where it has no text, or media."""
    slots: list[tuple[int, Any]] = []
    if message.content:
        if not isinstance(message.content, str) and (len(message.content) > 1 or type(message.content[0]) is not Text):
            return []
        slots.append((next(number), (about, "content")))
    if message.reasoning is not None:
        slots.insert(0, (next(number), (about, "reasoning")))
    for i in range(len(message.calls)):
        place = (about, i == 0, i + 1 == len(message.calls))
        slots += [(next(number), (*place, "name")), (next(number), (*place, "arguments"))]
    return slots


def composed(gaps: Gaps, places: Places, marks: Sequence[str]) -> str | None:
    """The text of a shape with a mark in the place of each text; None where a gap is not known."""
    parts = list[str]()
    for place, mark in zip(places.gaps, [*(marks[number] for number in places.numbers), ""], strict=True):
        gap = gaps.get(place)
        if gap is None:
            return None
        parts += [gap, mark]
    return "".join(parts)


def learn(gaps: Gaps, places: Places, numbers: Sequence[int], texts: Sequence[str]) -> None:
    """Keep what stands between the texts of a shape. numbers: of the texts, as they come; texts: the gaps."""
    if list(numbers) != places.numbers:
        return
    if len(gaps) > _MOST_GAPS:
        gaps.clear()
    for place, text in zip(places.gaps, texts, strict=True):
        gaps[place] = text if gaps.get(place, text) == text else None
