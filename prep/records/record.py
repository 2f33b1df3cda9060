"""One raw record -> one typed Record, or a Reject that names what is wrong and where.

A raw record goes in, an immutable record comes out: no code after this module looks at a dict again. The rules, with
an example of each, are in docs/records.md. The parsers are the standard library's json (which tells a duplicate key,
NaN and a deep nesting apart; faster parsers do not) and a walk over the values, since every fault needs a name and a
place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmms.configs.contract.pack import LEAST_WEIGHT, MOST_WEIGHT
from lmms.configs.settings.sources import DEFAULT_READING, Reading
from lmms.prep.records.parts import Image, Part, Text, parse_part
from lmms.prep.records.pictures import Bare, check_all_read, is_absent, parse_images
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

_USED_COLUMNS = ("messages", "images", "weight", "id")
_USED_MESSAGE_KEYS = ("role", "content", "weight", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is a string if the record had a string, else the parts."""

    role: Role
    content: str | tuple[Part, ...]
    weight: float
    """Weight in the loss of each token of an assistant turn; 0: context only. Weights of other turns have no effect."""
    reasoning: str | None

    @property
    def images(self) -> tuple[Image, ...]:
        """The image parts, in order."""
        return () if isinstance(self.content, str) else tuple(p for p in self.content if isinstance(p, Image))

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return (
            self.content
            if isinstance(self.content, str)
            else "".join(p.text for p in self.content if isinstance(p, Text))
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One conversation, checked and typed."""

    messages: tuple[Message, ...]
    weight: float
    """Weight of the whole conversation in the loss, above 0."""
    unused: tuple[str, ...]
    """Columns and message keys that hold something and are not used: reported once, by name."""

    @property
    def images(self) -> tuple[Image, ...]:
        """All images of the conversation, in order."""
        return tuple(image for message in self.messages for image in message.images)


def parse_record(raw: Any, reading: Reading = DEFAULT_READING) -> Record:
    """A record from the value of a JSON line or the row of a table."""
    if not isinstance(raw, Mapping):
        raise Reject("not_object", f"found {kind_of(raw)}, expected an object with `messages`")
    _reject_later(raw)
    messages = _messages(raw)
    images = parse_images(raw)
    parsed = tuple(_message(message, f"messages[{i}]", images) for i, message in enumerate(messages))
    images.check_empty()
    _check_media(raw, messages, parsed, images)
    if not any(message.role == "assistant" for message in parsed):
        raise Reject("no_assistant", "no assistant turn: nothing to learn from", "messages")
    weight = _weight(raw, "weight")
    if weight == 0:
        raise Reject("no_target_tokens", "the record has weight 0: nothing to learn from", "weight")
    return Record(parsed, weight, _unused(raw, messages, images))


def _reject_later(raw: Mapping[str, Any]) -> None:
    for column, reason in (("tools", "later_tools"), ("videos", "later_video"), ("audios", "later_audio")):
        if not is_absent(raw.get(column)):
            raise Reject(reason, f"`{column}` is set; this version cannot use it yet", column)
    if raw.get("messages") is None and "messages" not in raw and isinstance(raw.get("text"), str):
        raise Reject("later_text", "a plain `text` record; this version reads `messages` only", "text")


def _check_media(
    raw: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], parsed: Sequence[Message], images: Bare
) -> None:
    taken = sum(len(message.images) for message in parsed)
    check_all_read(raw, (images.column,) if images.taken else (), taken)
    for i, message in enumerate(messages):
        check_all_read(message, (), len(parsed[i].images), f"messages[{i}]")


def _messages(raw: Mapping[str, Any]) -> Sequence[Any]:
    if "messages" not in raw:
        raise Reject("missing_messages", f"no `messages`; found the columns {', '.join(map(str, raw)) or 'none'}")
    messages = raw["messages"]
    if isinstance(messages, str):  # a JSON column of a table
        messages = parse_json(messages, "messages")
    if not isinstance(messages, list):
        raise Reject("messages_not_list", f"`messages` is {kind_of(messages)}, expected a list", "messages")
    if not messages:
        raise Reject("empty_messages", "`messages` is an empty list", "messages")
    return messages


def _message(message: Any, place: str, images: Bare) -> Message:
    if not isinstance(message, Mapping):
        raise Reject("message_not_object", f"a message is {kind_of(message)}, expected an object", place)
    role = message.get("role")
    if role is None:
        raise Reject("missing_role", f"no `role`; found the keys {', '.join(map(str, message))}", place)
    if role == "tool" or message.get("tool_calls") or message.get("function_call") is not None:
        raise Reject("later_tools", "a tool call or tool result; this version cannot use it yet", place)
    if message.get("audio") is not None:
        raise Reject("later_audio", "a spoken message; this version cannot use it yet", place)
    if role not in ROLES:
        raise Reject("unknown_role", f"role {role!r}; expected one of {', '.join(ROLES)}", place)
    content = _content(message, place, images)
    weight = _weight(message, f"{place}.weight")
    if role != "assistant" and weight not in (0, 1):
        raise Reject(
            "bad_weight", f"weight {weight:g} of a {role} turn, which is not learned; expected none", f"{place}.weight"
        )
    parsed = Message(role, content, weight, _reasoning(message, place))
    if role == "assistant" and parsed.images:
        raise Reject("image_in_assistant", "an image in an assistant turn; the model only reads images", place)
    return parsed


def _content(message: Mapping[str, Any], place: str, images: Bare) -> str | tuple[Part, ...]:
    place = f"{place}.content"
    if "content" not in message:
        raise Reject("missing_content", "no `content`", place)
    content = message["content"]
    if content is None:
        raise Reject("null_content", "`content` is null and there is no tool call", place)
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Reject(
            "bad_content_type", f"`content` is {kind_of(content)}, expected a string or a list of parts", place
        )
    if not content:
        raise Reject("empty_content", "`content` is an empty list", place)
    return tuple(parse_part(part, f"{place}[{i}]", images) for i, part in enumerate(content))


def _weight(holder: Mapping[str, Any], place: str) -> float:
    """The `weight` of a record or message; 1 by default."""
    weight = holder.get("weight")
    if weight is None:
        return 1.0
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not (weight == 0 or LEAST_WEIGHT <= weight <= MOST_WEIGHT):
        given = repr(weight)[:40] if is_number else kind_of(weight)
        expected = f"expected a number, 0 or from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}"
        raise Reject("bad_weight", f"weight is {given}; {expected}", place)
    return float(weight)


def _reasoning(message: Mapping[str, Any], place: str) -> str | None:
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise Reject("bad_reasoning", f"`reasoning_content` is {kind_of(reasoning)}, expected a string", place)
    return reasoning


def _unused(raw: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], images: Bare) -> tuple[str, ...]:
    used = (*_USED_COLUMNS, images.column) if images.taken else _USED_COLUMNS
    columns = [key for key, value in raw.items() if value is not None and key not in used]
    keys = {key for m in messages for key, value in m.items() if value is not None and key not in _USED_MESSAGE_KEYS}
    return (*(f"column {key}" for key in columns), *(f"key messages[].{key}" for key in sorted(keys)))
