"""VeOmni: {conversations: [["user", ["image", null], ["text", "What?"]], ["assistant", ["text", ...]]], images: [...]}.

Those are the tuples that its preprocessors make. Turns of the form {from, value} are read as its general preprocessor
reads them: every tag in place; {role, content: [{type: text, value}, {type: image}]} as its demo's reads them. Text in
place of turns is a caption, the answer to the pictures alone: VeOmni asks a question of its own for each such data set.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmms.prep.records.forms import llava
from lmms.prep.records.forms.sharegpt import LISTS, column_of, has_conversation
from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import (
    MEDIA_COLUMNS,
    check_counts,
    listed,
    media,
    missing,
    peeked,
    peeked_parts,
    with_named_value,
)
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

_IMAGES = ("images", "image")


def _read(record: Mapping[str, Any], roles: Roles) -> Normal:
    column = column_of(record)
    if _is_caption(record[column]):
        return _caption(record, column)
    turns = listed(record, column)
    if not isinstance(turns[0], list):
        return _with_named_values(llava.FORM.read(record, roles))
    entries = media(record)
    messages = [_message(turn, f"{column}[{i}]", entries) for i, turn in enumerate(turns)]
    check_counts(messages, entries)
    places = tuple(f"{column}[{i}]" for i in range(len(turns)))
    return Normal(renamed(record, (*LISTS, *MEDIA_COLUMNS), messages=messages, **entries), places)


def _caption(record: Mapping[str, Any], column: str) -> Normal:
    entries = media(record)
    pictures = len(entries.get("images", []))
    if not record[column].strip() or not pictures:
        raise missing(record, f"turns in `{column}`, nor a caption with `images`")
    turns = [
        {"role": "user", "content": [{"type": "image"}] * pictures},
        {"role": "assistant", "content": record[column]},
    ]
    return Normal(renamed(record, (*LISTS, *MEDIA_COLUMNS), messages=turns, **entries), ("images", column))


def _is_caption(value: Any) -> bool:
    """Whether text stands in place of turns; text that begins with a bracket is JSON of turns."""
    return isinstance(value, str) and not value.lstrip().startswith("[")


def _with_named_values(normal: Normal) -> Normal:
    messages = [
        {**m, "content": [with_named_value(part) for part in m["content"]]} if isinstance(m["content"], list) else m
        for m in normal.record["messages"]
    ]
    return replace(normal, record={**normal.record, "messages": messages})


def _message(turn: Any, place: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(turn, list) or not turn or not isinstance(turn[0], str):
        raise Reject("message_not_object", f"a turn is {kind_of(turn)}, expected [role, [kind, value], ...]", place)
    return {"role": turn[0], "content": [_part(part, f"{place}[{i}]", entries) for i, part in enumerate(turn[1:], 1)]}


def _part(part: Any, place: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """A part, which takes its value from the column of its kind where the record has that column."""
    if not isinstance(part, list) or len(part) != 2 or not isinstance(part[0], str):
        raise Reject("part_not_object", f"a part is {kind_of(part)}, expected [kind, value]", place)
    kind, value = part
    is_bare = f"{kind}s" in entries or value is None
    return {"type": kind} if is_bare and kind != "text" else {"type": kind, kind: value}


def _fits(record: Mapping[str, Any]) -> bool:
    return _has_caption(record) or has_conversation(record) or _has_tuples(record)


def _has_caption(record: Mapping[str, Any]) -> bool:
    return _is_caption(record.get("conversations")) and any(record.get(name) is not None for name in _IMAGES)


def _has_tuples(record: Mapping[str, Any]) -> bool:
    return any(isinstance(turn, list) for name in LISTS for turn in peeked(record, name))


def _marks(record: Mapping[str, Any]) -> bool:
    parts = (part for name in LISTS for part in peeked_parts(record, name))
    has_values = any(part.get("type") == "text" and part.get("value") is not None for part in parts)
    return has_values or _has_caption(record) or _has_tuples(record)


FORM = Form((*LISTS, *MEDIA_COLUMNS), _fits, _read, _marks)
