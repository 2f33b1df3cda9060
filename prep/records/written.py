"""Boxes and points of a record as text: the last step before the rendering, when all pictures have their size."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from lmms.configs.settings.sources import Coords
from lmms.prep.records.parts import Part, Text
from lmms.prep.records.record import Message, Record
from lmms.prep.records.shapes import Shape, Size, shape_text


def has_shapes(record: Record) -> bool:
    """Whether a turn of the record holds a box or a point."""
    return any(isinstance(part, Shape) for m in record.messages if not isinstance(m.content, str) for part in m.content)


def with_shapes_written(record: Record, sizes: Sequence[tuple[Size, Size]], coords: Coords) -> Record:
    """The record with texts in place of its shapes.

    sizes: of each picture, before and after the processor's resize. Raises Reject for a shape outside its picture.
    """
    return replace(record, messages=tuple(_message(message, sizes, coords) for message in record.messages))


def _message(message: Message, sizes: Sequence[tuple[Size, Size]], coords: Coords) -> Message:
    if isinstance(message.content, str) or not any(isinstance(part, Shape) for part in message.content):
        return message
    parts: list[Part] = [
        Text(shape_text(part, *sizes[part.image], coords)) if isinstance(part, Shape) else part
        for part in message.content
    ]
    if all(isinstance(part, Text) for part in parts):
        return replace(message, content="".join(part.text for part in parts if isinstance(part, Text)))
    runs = groupby(parts, lambda part: isinstance(part, Text))
    joined = [part for is_text, run in runs for part in (_joined(list(run)) if is_text else run)]
    return replace(message, content=tuple(joined))


def _joined(run: Sequence[Part]) -> list[Part]:
    return [Text("".join(part.text for part in run if isinstance(part, Text)))]
