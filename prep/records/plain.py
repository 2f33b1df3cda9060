"""Plain records, the most of all, in less time: messages with a role and a text, or parts of texts and pictures, and
calls, reasoning and tools.

What is not plain is walked by parse_record, which has a name for every fault. A test holds both to one another.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from lmms.configs.settings.sources import Reading
from lmms.prep.media.read import MediaRef
from lmms.prep.records.absent import is_absent, is_null_image
from lmms.prep.records.media.bare import Bare
from lmms.prep.records.media.names import media_kind
from lmms.prep.records.media.pictures import image_ref, parse_images
from lmms.prep.records.media.unread import NONE_TAKEN, check_nested
from lmms.prep.records.parts import Image, Part, Text
from lmms.prep.records.record import ROLES, USED_COLUMNS, Message, Record
from lmms.prep.records.tools import ToolCall, parse_calls, parse_tools
from lmms.prep.records.weights import RECORD_FLAGS, learned_weights
from lmms.prep.reject import Reject

_COLUMNS = ("messages", "id", "tools", "images")
_PART_KINDS = ("text", "image", "image_url")
_ADDRESS_KEYS = frozenset(("url", "detail"))
_NO_IMAGES: Bare[MediaRef] = Bare("images", ())
_KEYS = frozenset(("role", "content", "reasoning_content", "tool_calls", "tool_call_id", "name"))


def parse_plain(raw: Any, reading: Reading) -> Record | None:
    """What parse_record gives, or None for a record that is not plain."""
    if type(raw) is not dict or reading.reasoning == "stripped" or reading.transforms or not _are_plain(tuple(raw)):
        return None
    turns = raw["messages"]
    if type(turns) is not list:
        return None
    try:
        check_nested(raw, _COLUMNS, NONE_TAKEN)
        tools = parse_tools(raw) if "tools" in raw else ()
        bare = parse_images(raw) if "images" in raw else _NO_IMAGES
        messages = [message for i, turn in enumerate(turns) if (message := _message(turn, i, bare, reading))]
        bare.check_empty()
    except Reject:  # the walk may find another fault first
        return None
    if len(messages) < len(turns) or not any(message.weight for message in messages):
        return None
    if reading.targets == "last":
        last = learned_weights([m.role for m in messages], [m.weight for m in messages], "last")
        messages = [replace(message, weight=weight) for message, weight in zip(messages, last, strict=True)]
    return Record(
        messages=tuple(messages),
        weight=1.0,
        unused=tuple(f"column {key}" for key, value in raw.items() if key not in _COLUMNS and not is_absent(value)),
        tools=tools,
        template_options=reading.template_options,
        reasoning=reading.reasoning,
    )


def _message(turn: Any, number: int, bare: Bare[MediaRef], reading: Reading) -> Message | None:
    if type(turn) is not dict or not turn.keys() <= _KEYS:
        return None
    role, content, reasoning = turn.get("role"), turn.get("content"), turn.get("reasoning_content")
    name, call_id = turn.get("name"), turn.get("tool_call_id")
    if type(role) is not str:
        return None
    role = reading.roles.get(role, role)
    calls: tuple[ToolCall, ...] = parse_calls(turn, "") if "tool_calls" in turn else ()
    if calls and content is None:
        content = ""
    if role not in ROLES:
        return None
    if type(content) is list:
        content = _parts(content, number, bare, role != "assistant")
    elif type(content) is not str:
        return None
    if content is None:
        return None
    if role != "assistant" and (calls or reasoning is not None):
        return None
    for text in (reasoning, name, call_id):
        if text is not None and type(text) is not str:
            return None
    weight = 1.0 if role == "assistant" or reading.targets == "all" else 0.0
    return Message(role, content, weight, reasoning, calls, name, call_id)


def _parts(given: list[Any], number: int, bare: Bare[MediaRef], may_show: bool) -> tuple[Part, ...] | None:
    """The parts of a turn that are texts and pictures; None where another is. may_show: whether pictures may be."""
    parts: list[Part] = []
    for i, part in enumerate(given):
        if type(part) is not dict:
            return None
        kind = part.get("type")
        if kind not in _PART_KINDS:
            return None
        value = part.get(kind)
        # The row of a table has the keys of other parts too, all null.
        is_alone = len(part) == 1 + (kind in part)
        if not is_alone and any(part[key] is not None for key in part if key not in ("type", kind)):
            return None
        if kind == "text":
            if type(value) is not str:
                return None
            parts.append(Text(value))
            continue
        place = f"messages[{number}].content[{i}]"
        ref = _address(value) if kind == "image_url" else _picture(value, bare, place)
        if ref is None or not may_show:
            return None
        parts.append(Image(ref, place))
    return tuple(parts) or None


def _address(value: Any) -> MediaRef | None:
    if type(value) is dict and value.keys() <= _ADDRESS_KEYS:
        value = value.get("url")
    return MediaRef("url", value) if type(value) is str else None


def _picture(value: Any, bare: Bare[MediaRef], place: str) -> MediaRef:
    if type(value) is str:
        return MediaRef("path", value)
    return bare.take(place) if is_null_image(value) else image_ref(value, place)


@lru_cache(maxsize=1024)
def _are_plain(columns: tuple[Any, ...]) -> bool:
    """Whether columns are messages and tools, and others that nothing reads and that hold no media."""
    others = [column for column in columns if column not in _COLUMNS]
    return "messages" in columns and not any(
        column in USED_COLUMNS or column in RECORD_FLAGS or media_kind(column) for column in others
    )
