"""LLaMA-Factory's second form: {messages: [{role, content: [{type, value}], loss_weight}]}.

Kinds of parts: text, image_url, video_url, audio_url, reasoning, tool_call (a call as JSON).
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.forms.form import Form, Normal, Roles, renamed
from lmms.prep.records.forms.turns import calls_of, listed, missing, peeked


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("messages") is None:
        raise missing(record, "`messages`")
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(listed(record, "messages"))]
    return Normal(renamed(record, (), messages=messages))


def _message(message: Any, place: str) -> Any:
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    parts = message["content"]
    calls = [
        call
        for i, part in enumerate(parts)
        if _kind(part) == "tool_call"
        for call in calls_of(part.get("value"), f"{place}.content[{i}].value")["tool_calls"]
    ]
    thoughts = [part.get("value") for part in parts if _kind(part) == "reasoning"]
    others = [_part(part) for part in parts if _kind(part) not in ("tool_call", "reasoning")]
    turn = {**message, "content": others or (None if calls else [])}
    turn |= {"tool_calls": calls} if calls else {}
    return turn | ({"reasoning_content": "".join(map(str, thoughts))} if thoughts else {})


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, Mapping) else None


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping) or "value" not in part:
        return part
    others = {key: value for key, value in part.items() if key != "value"}
    return {**others, str(part.get("type")): part["value"]}


def _fits(record: Mapping[str, Any]) -> bool:
    return "messages" in record


def _marks(record: Mapping[str, Any]) -> bool:
    contents = [turn.get("content") for turn in peeked(record, "messages") if isinstance(turn, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and "type" in part and part.get("value") is not None for part in parts)


FORM = Form(("messages", "tools", "weight", "chat_template_kwargs"), _fits, _read, _marks)
