"""What differs from one family's chat template to the next, as one frozen value."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmms.configs.settings.sources import Coords
from lmms.prep.records.record import Message, Record
from lmms.prep.records.tools import ToolCall


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """All that prep knows of a family, besides family_facts."""

    template_messages: Callable[[Record], list[dict[str, Any]]]
    """A record -> the `messages` of the chat template. Raises Reject for a record that the family cannot read."""
    turn_start: str
    """The special token that opens a turn; the role follows, then a line break."""
    turn_end: str
    """The special token that closes a turn, which the model learns to end with."""
    text_end: str
    """The special token that closes a document without turns."""
    coords: Coords = "norm1000"
    """How the model writes boxes and points, unless a setting says otherwise."""
    plain_templates: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of published chat templates that print plain texts as they are, see outline.py -> their models."""
    image_around: tuple[str, str] | None = None
    """The special tokens that the template puts before and behind a picture."""
    clip: Callable[[Sequence[float]], list[str]] | None = None
    """The times of a video's rows -> what takes the place of its placeholder: text, control token, ..., text."""


def other_keys(message: Message) -> dict[str, Any]:
    """The keys of a template's message besides role and content, each only where the record has it."""
    calls = [
        {"type": "function", **({"id": call.id} if call.id else {}), "function": _function(call)}
        for call in message.calls
    ]
    values = {
        "reasoning_content": message.reasoning,
        "tool_calls": calls or None,
        "name": message.name,
        "tool_call_id": message.call_id,
    }
    return {key: value for key, value in values.items() if value is not None}


def _function(call: ToolCall) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}
