"""One raw record -> one typed Record, or a Reject that names what is wrong and where.

A raw record goes in, an immutable record comes out: no code after this module looks at a dict again. The rules, with
an example of each, are in docs/records.md. Every fault needs a name and a place, so this is a walk over the values.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lmms.configs.settings.sources import DEFAULT_READING, Reading, Reasoning, Role
from lmms.configs.settings.transforms import columns_of
from lmms.prep.records.absent import is_absent
from lmms.prep.records.media.names import Kind
from lmms.prep.records.media.pictures import parse_images
from lmms.prep.records.media.sounds import parse_audios
from lmms.prep.records.media.unread import Taken, check_all_read, check_nested
from lmms.prep.records.media.videos import parse_videos, refuse_sound_track
from lmms.prep.records.parts import MEDIA_PARTS, Audio, Columns, Image, Medium, Part, Text, Video, parse_part
from lmms.prep.records.reasoning import REASONING_KEYS, is_thinking, parse_reasoning, without_think_blocks
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.records.tools import ToolCall, parse_calls, parse_tools
from lmms.prep.records.weights import WEIGHT_KEYS, is_record_flag, learned_weights, message_weight, record_weight
from lmms.prep.reject import Reject

ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

USED_COLUMNS = ("messages", "images", "videos", "audios", "weight", "id", "tools", "functions", "chat_template_kwargs")
_USED_MESSAGE_KEYS = (
    "role",
    "content",
    "name",
    "tool_calls",
    "function_call",
    "tool_call_id",
    *REASONING_KEYS,
    *WEIGHT_KEYS,
)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is a string if the record had a string, else the parts."""

    role: Role
    content: str | tuple[Part, ...]
    weight: float
    """Weight in the loss of each token of the turn; 0: context only."""
    reasoning: str | None
    calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    call_id: str | None = None
    """The call that a tool's result answers."""

    @property
    def images(self) -> tuple[Image, ...]:
        """The image parts, in order."""
        return () if isinstance(self.content, str) else tuple(p for p in self.content if isinstance(p, Image))

    @property
    def media(self) -> tuple[Medium, ...]:
        """The parts with images, videos and sounds, in order."""
        return () if isinstance(self.content, str) else tuple(p for p in self.content if isinstance(p, MEDIA_PARTS))

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
    tools: tuple[Mapping[str, Any], ...] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords for the chat template."""
    reasoning: Reasoning = "template"
    """What is learned of the think blocks."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The raw values of the columns that transforms read."""
    place: str = "messages"
    """The column of the turns, for a fault of the whole conversation; empty for turns of several columns."""

    @property
    def images(self) -> tuple[Image, ...]:
        """All images of the conversation, in order."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def media(self) -> tuple[Medium, ...]:
        """All images, videos and sounds of the conversation, in order."""
        return tuple(part for message in self.messages for part in message.media)


def parse_record(raw: Any, reading: Reading = DEFAULT_READING) -> Record:
    """A record from the value of a JSON line or the row of a table, read as the settings of its source say."""
    if not isinstance(raw, Mapping):
        raise Reject("not_object", f"found {kind_of(raw)}, expected an object with `messages`")
    messages = _messages(raw)
    bare = Columns(parse_images(raw), parse_videos(raw), parse_audios(raw))
    parsed = [_message(message, f"messages[{i}]", bare, reading) for i, message in enumerate(messages)]
    media_columns = (bare.images, bare.videos, bare.audios)
    for column in media_columns:
        column.check_empty()
    if any(isinstance(part, Video) for message in parsed for part in message.media):
        for asks in (raw, raw.get("mm_processor_kwargs")):
            refuse_sound_track(asks if isinstance(asks, Mapping) else {}, "")
    columns = columns_of(reading.transforms) if reading.transforms else ()
    used = (*USED_COLUMNS, *columns, *(each.column for each in media_columns if each.taken))
    _check_media(raw, messages, parsed, used)
    roles = [message.role for message in parsed]
    if "assistant" not in roles and reading.targets != "all":
        raise Reject("no_assistant", "no assistant turn: nothing to learn from, except with targets=all", "messages")
    weights = learned_weights(roles, [message.weight for message in parsed], reading.targets)
    weight = record_weight(raw)
    return Record(
        messages=tuple(replace(message, weight=weight) for message, weight in zip(parsed, weights, strict=True)),
        weight=weight,
        unused=_unused(raw, messages, used),
        tools=parse_tools(raw),
        template_options=_template_options(raw, reading),
        reasoning=reading.reasoning,
        columns={column: raw.get(column) for column in columns},
    )


def _check_media(
    raw: Mapping[str, Any],
    messages: Sequence[Mapping[str, Any]],
    parsed: Sequence[Message],
    used: Sequence[str],
) -> None:
    taken = _taken(parsed)
    check_all_read(raw, used, taken)
    check_nested(raw, used, taken)
    for i, message in enumerate(messages):
        check_all_read(message, (), _taken(parsed[i : i + 1]), f"messages[{i}]")
        check_nested(message, _USED_MESSAGE_KEYS, _taken(parsed[i : i + 1]), f"messages[{i}]")


def _taken(messages: Sequence[Message]) -> Taken:
    media = [part for message in messages for part in message.media]
    kinds: dict[Kind, type] = {"image": Image, "video": Video, "audio": Audio}
    return {kind: sum(isinstance(part, made) for part in media) for kind, made in kinds.items()}


def captions_read(columns: Collection[str]) -> str:
    """What to set for records without turns, from the names of their columns."""
    if "txt" in columns:  # KEY.txt of a tar file
        return (
            "a tar file of pictures with captions is read with form: veomni and fields: {conversations: txt}, a tar"
            " file of texts with form: text and fields: {text: txt}; records of another shape need a file of their own"
        )
    return "for text set form=text; if the turns stand elsewhere, say where with fields: {messages: NAME}"


def _messages(raw: Mapping[str, Any]) -> Sequence[Any]:
    if "messages" not in raw:
        columns = ", ".join(map(str, raw)) or "none"
        raise Reject("missing_messages", f"no `messages`; found the columns {columns}; {captions_read(raw)}")
    messages = raw["messages"]
    if isinstance(messages, str):  # a JSON column of a table
        messages = parse_json(messages, "messages")
    if not isinstance(messages, list):
        raise Reject("messages_not_list", f"`messages` is {kind_of(messages)}, expected a list", "messages")
    if not messages:
        raise Reject("empty_messages", "`messages` is an empty list", "messages")
    return messages


def _message(message: Any, place: str, bare: Columns, reading: Reading) -> Message:
    if not isinstance(message, Mapping):
        raise Reject("message_not_object", f"a message is {kind_of(message)}, expected an object", place)
    role = _role(message, place, reading.roles)
    calls = parse_calls(message, place)
    if calls and role != "assistant":
        raise Reject("bad_tool_call", f"a call in a {role} turn; expected calls in assistant turns only", place)
    content = _content(message, role, place, bare, bool(calls))
    reasoning = parse_reasoning(message, place)
    if reasoning and role != "assistant":
        raise Reject("bad_reasoning", f"reasoning in a {role} turn; expected reasoning in assistant turns only", place)
    if reading.reasoning == "stripped" and role == "assistant":
        content, reasoning = _without_reasoning(content, place), None
    parsed = Message(
        role=role,
        content=content,
        weight=message_weight(message, role == "assistant" or reading.targets == "all", place),
        reasoning=reasoning,
        calls=calls,
        name=_string(message, "name", place),
        call_id=_string(message, "tool_call_id", place),
    )
    if role == "assistant" and parsed.media:
        message_text = "an image, video or sound in an assistant turn; the model only reads those"
        raise Reject("image_in_assistant", message_text, place)
    return parsed


def _role(message: Mapping[str, Any], place: str, roles: Mapping[str, Role]) -> Role:
    given = message.get("role")
    if given is None:
        raise Reject("missing_role", f"no `role`; found the keys {', '.join(map(str, message))}", place)
    role = roles.get(given, given) if isinstance(given, str) else given
    if role not in ROLES:
        advice = f"; a setting can name it, such as roles={{{given}: user}}" if isinstance(given, str) else ""
        raise Reject("unknown_role", f"role {given!r}; expected one of {', '.join(ROLES)}{advice}", place)
    return role


def _content(
    message: Mapping[str, Any], role: Role, place: str, bare: Columns, has_calls: bool
) -> str | tuple[Part, ...]:
    place = f"{place}.content"
    content = message.get("content")
    if has_calls and content in (None, []):
        return ""
    if "content" not in message:
        raise Reject("missing_content", "no `content`", place)
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
    is_read = [role == "assistant" and is_thinking(part) for part in content]
    return tuple(parse_part(part, f"{place}[{i}]", bare) for i, part in enumerate(content) if not is_read[i])


def _without_reasoning(content: str | tuple[Part, ...], place: str) -> str | tuple[Part, ...]:
    """The content without its think blocks, which may begin in one text part and end in the next."""
    if isinstance(content, str):
        return _stripped(content, place)
    parts: list[Part] = []
    for part in content:
        if isinstance(part, Text) and parts and isinstance(parts[-1], Text):
            parts[-1] = Text(parts[-1].text + part.text)
        else:
            parts.append(part)
    return tuple(Text(_stripped(part.text, place)) if isinstance(part, Text) else part for part in parts)


def _stripped(text: str, place: str) -> str:
    rest = without_think_blocks(text)
    if "<think>" in rest:
        raise Reject(
            "bad_reasoning", "a think block that does not end; expected </think> behind it", f"{place}.content"
        )
    return rest


def _string(message: Mapping[str, Any], key: str, place: str) -> str | None:
    value = message.get(key)
    if not isinstance(value, str | None):
        raise Reject("bad_tool_call", f"`{key}` is {kind_of(value)}, expected a string", f"{place}.{key}")
    return value


def _template_options(raw: Mapping[str, Any], reading: Reading) -> Mapping[str, Any]:
    """The keywords for the template: those of the record over those of its source."""
    options = raw.get("chat_template_kwargs")
    if is_absent(options):
        return reading.template_options
    if isinstance(options, str):
        options = parse_json(options, "chat_template_kwargs")
    if not isinstance(options, Mapping):
        message = f"`chat_template_kwargs` is {kind_of(options)}, expected an object"
        raise Reject("bad_template_option", message, "chat_template_kwargs")
    return {**reading.template_options, **options}


def _unused(raw: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], used: Sequence[str]) -> tuple[str, ...]:
    columns = [key for key, value in raw.items() if not (key in used or is_absent(value) or is_record_flag(key, value))]
    keys = {key for m in messages for key, value in m.items() if value is not None and key not in _USED_MESSAGE_KEYS}
    return (*(f"column {key}" for key in columns), *(f"key messages[].{key}" for key in sorted(keys)))
