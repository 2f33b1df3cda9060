"""What a form makes of a record, in the words of the examples."""

import json
from typing import Any

import pytest

from lmms.configs.settings.sources import DEFAULT_READING, FormName, Reading
from lmms.prep.records.document import Document, Passage
from lmms.prep.records.forms import normal_form
from lmms.prep.records.read import read_record
from lmms.prep.records.shapes import Shape
from lmms.prep.reject import REASONS, Reject
from tests.kit.forms.turns import CONTEXT, LEARNED, PICTURE, Turn


def reading(form: FormName, **settings: Any) -> Reading:
    values = {name: getattr(DEFAULT_READING, name) for name in Reading.__dataclass_fields__}
    return Reading(**{**values, "form": form, **settings})


def turns(form: FormName, record: dict[str, Any], **settings: Any) -> list[Turn]:
    """(role, content) of each message of the normal form: a text, or texts, names of kinds, and shapes.

    Of a document (kind, text or picture) of each passage.
    """
    normal = normal_form(record, reading(form, **settings))
    if normal.document:
        return _passages(read_record(record, reading(form, **settings)))
    messages = normal.record["messages"]
    if isinstance(messages, str):
        messages = json.loads(messages)
    return [(message["role"], _content(message)) for message in messages]


def _passages(document: Any) -> list[Turn]:
    assert isinstance(document, Document)
    return [
        ((LEARNED if part.is_learned else CONTEXT), part.text)
        if isinstance(part, Passage)
        else (PICTURE, part.ref.value)
        for part in document.parts
    ]


def _content(message: dict[str, Any]) -> Any:
    if message.get("tool_calls"):
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
        return (message.get("content"), *calls)
    if not isinstance(message["content"], list):
        return message["content"]
    return [_part(part) for part in message["content"]]


def _part(part: Any) -> Any:
    if isinstance(part, Shape):
        corners = (part.points[0], part.points[2]) if part.kind == "box" else part.points
        return (part.kind, [number for corner in corners for number in corner])
    return part["text"] if part["type"] == "text" else (part["type"],)


def rejected(form: FormName, record: dict[str, Any], **settings: Any) -> tuple[str, str]:
    """Reason and place of the rejection of a record."""
    with pytest.raises(Reject) as caught:
        read_record(record, reading(form, **settings))
    assert caught.value.reason in REASONS
    assert caught.value.message
    return caught.value.reason, caught.value.place
