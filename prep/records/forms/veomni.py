"""VeOmni: {conversations: [["user", ["image", null], ["text", "What?"]], ["assistant", ["text", ...]]], images: [...]}.

Those are the tuples that its preprocessors make. Turns of the form {from, value} are read as its general preprocessor
reads them: every tag in place; {role, content: [{type: text, value}, {type: image}]} as its demo's reads them. Its
preprocessors for single data sets, which write prompts of their own, are not read.
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
    peeked,
    peeked_parts,
    with_named_value,
)
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject


def _read(record: Mapping[str, Any], roles: Roles) -> Normal:
    column = column_of(record)
    turns = listed(record, column)
    if not isinstance(turns[0], list):
        return _with_named_values(llava.FORM.read(record, roles))
    entries = media(record)
    messages = [_message(turn, f"{column}[{i}]", entries) for i, turn in enumerate(turns)]
    check_counts(messages, entries)
    places = tuple(f"{column}[{i}]" for i in range(len(turns)))
    return Normal(renamed(record, (*LISTS, *MEDIA_COLUMNS), messages=messages, **entries), places)


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
    return any(isinstance(turn, list) for name in LISTS for turn in peeked(record, name)) or has_conversation(record)


def _marks(record: Mapping[str, Any]) -> bool:
    parts = (part for name in LISTS for part in peeked_parts(record, name))
    has_values = any(part.get("type") == "text" and part.get("value") is not None for part in parts)
    return has_values or any(isinstance(turn, list) for name in LISTS for turn in peeked(record, name))


FORM = Form((*LISTS, *MEDIA_COLUMNS), _fits, _read, _marks)
