"""Plain records, the most of all, in less time: messages with a role and a text, and calls, reasoning and tools.

What is not plain is walked by parse_record, which has a name for every fault. A test holds both to one another.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from lmms.configs.settings.sources import Reading
from lmms.prep.records.absent import is_absent
from lmms.prep.records.media.names import media_kind
from lmms.prep.records.media.unread import NONE_TAKEN, check_nested
from lmms.prep.records.record import ROLES, USED_COLUMNS, Message, Record
from lmms.prep.records.tools import ToolCall, parse_calls, parse_tools
from lmms.prep.records.weights import RECORD_FLAGS, learned_weights
from lmms.prep.reject import Reject

_COLUMNS = ("messages", "id", "tools")
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
        messages = [message for turn in turns if (message := _message(turn, reading))]
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


def _message(turn: Any, reading: Reading) -> Message | None:
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
    if role not in ROLES or type(content) is not str:
        return None
    if role != "assistant" and (calls or reasoning is not None):
        return None
    for text in (reasoning, name, call_id):
        if text is not None and type(text) is not str:
            return None
    weight = 1.0 if role == "assistant" or reading.targets == "all" else 0.0
    return Message(role, content, weight, reasoning, calls, name, call_id)


@lru_cache(maxsize=1024)
def _are_plain(columns: tuple[Any, ...]) -> bool:
    """Whether columns are messages and tools, and others that nothing reads and that hold no media."""
    others = [column for column in columns if column not in _COLUMNS]
    return "messages" in columns and not any(
        column in USED_COLUMNS or column in RECORD_FLAGS or media_kind(column) for column in others
    )
