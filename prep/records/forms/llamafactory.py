"""LLaMA-Factory's second form: {messages: [{role, content: [{type, value}], loss_weight}]}.

Kinds of parts: text, image_url, video_url, audio_url, reasoning, tool_call (a call as JSON).
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import calls_of, listed, missing, peeked_parts, with_named_value
from lmms.prep.reject import Reject


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("messages") is None:
        raise missing(record, "`messages`")
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(listed(record, "messages"))]
    return Normal(renamed(record, (), messages=messages))


def _message(message: Any, place: str) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    kinds = [_kind(part) for part in parts]
    if "tool_call" in kinds and set(kinds[kinds.index("tool_call") :]) != {"tool_call"}:
        raise Reject("bad_part", "a part after a tool_call, for which a turn of the model has no place", place)
    calls = [
        call
        for i, part in enumerate(parts)
        if _kind(part) == "tool_call"
        for call in calls_of(part.get("value"), f"{place}.content[{i}].value")["tool_calls"]
    ]
    others = [with_named_value(part) for part in parts if _kind(part) != "tool_call"]
    turn = {**message, "content": others or (None if calls else [])}
    return turn | ({"tool_calls": calls} if calls else {})


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else None


def _fits(record: Mapping[str, Any]) -> bool:
    return "messages" in record


def _marks(record: Mapping[str, Any]) -> bool:
    return any("type" in part and part.get("value") is not None for part in peeked_parts(record))


FORM = Form(("messages",), _fits, _read, _marks)
