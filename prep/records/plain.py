"""Plain records, the most of all, in a tenth of the time: messages with a role and a text, and columns beside them.

What is not plain is walked by parse_record, which has a name for every fault. A test holds both to one another.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from lmms.configs.settings.sources import Reading
from lmms.prep.records.media_names import media_kind
from lmms.prep.records.record import ROLES, USED_COLUMNS, Message, Record
from lmms.prep.records.weights import learned_weights

_COLUMNS = ("messages", "id")
_TEXT_KEYS = {"role", "content"}
_REASONING_KEYS = {"role", "content", "reasoning_content"}


def parse_plain(raw: Any, reading: Reading) -> Record | None:
    """What parse_record gives, or None for a record that is not plain."""
    if type(raw) is not dict or reading.reasoning == "stripped" or reading.transforms or not _are_plain(tuple(raw)):
        return None
    turns = raw["messages"]
    if type(turns) is not list:
        return None
    messages = []
    for turn in turns:
        if type(turn) is not dict:
            return None
        keys = turn.keys()
        reasoning = None
        if keys != _TEXT_KEYS:
            if keys != _REASONING_KEYS:
                return None
            reasoning = turn["reasoning_content"]
        role, content = turn["role"], turn["content"]
        if type(role) is not str or type(content) is not str:
            return None
        role = reading.roles.get(role, role)
        if role not in ROLES or (reasoning is not None and (type(reasoning) is not str or role != "assistant")):
            return None
        weight = 1.0 if role == "assistant" or reading.targets == "all" else 0.0
        messages.append(Message(role, content, weight, reasoning))
    if not any(message.weight for message in messages):
        return None
    if reading.targets == "last":
        last = learned_weights([m.role for m in messages], [m.weight for m in messages], "last")
        messages = [replace(message, weight=weight) for message, weight in zip(messages, last, strict=True)]
    return Record(
        messages=tuple(messages),
        weight=1.0,
        unused=tuple(f"column {key}" for key, value in raw.items() if key not in _COLUMNS and value is not None),
        template_options=reading.template_options,
        reasoning=reading.reasoning,
    )


@lru_cache(maxsize=1024)
def _are_plain(columns: tuple[Any, ...]) -> bool:
    """Whether columns are messages, and others that nothing reads and that hold no media."""
    others = [column for column in columns if column not in _COLUMNS]
    return "messages" in columns and not any(column in USED_COLUMNS or media_kind(column) for column in others)
