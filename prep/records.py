"""One raw record -> one typed Record, or a Reject that names what is wrong and where.

Raw in, immutable out, once: after this page nothing looks at a dict again. The rules, with an example of each, are in
docs/records.md. The parsers are the standard library's json (it tells a duplicate key, NaN and a deep nesting apart,
which faster ones do not) and our own walk over the values, since every fault needs a name and a place.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lmms.configs.errors import nearest
from lmms.prep.media import ImageRef
from lmms.prep.reject import Reject

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

_PART_KEYS = {"text": ("text",), "image": ("image",), "image_url": ("image_url",)}
_LATER_PARTS = {
    **dict.fromkeys(("video", "video_url"), "later_video"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "later_audio"),
}
_USED_COLUMNS = ("messages", "images", "id")
_USED_MESSAGE_KEYS = ("role", "content", "weight", "reasoning_content")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Text:
    """A text part."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image part: where its bytes come from."""

    ref: ImageRef
    place: str


Part = Text | Image


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `content` is a string where the record had a string, else its parts."""

    role: Role
    content: str | tuple[Part, ...]
    weight: int
    """1, or 0 for an assistant turn that is context only."""
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
    """One conversation."""

    messages: tuple[Message, ...]
    unused: tuple[str, ...]
    """Columns and message keys that hold something and are not used: reported once, by name."""

    @property
    def images(self) -> tuple[Image, ...]:
        """All images of the conversation, in order."""
        return tuple(image for message in self.messages for image in message.images)


def parse_line(line: bytes) -> Any:
    """The JSON value of one line (without its line feed)."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"byte {error.start} of the line is not UTF-8 ({error.reason})") from None
    value = parse_json(text, "")
    if _SURROGATE_ESCAPE.search(line):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise Reject("lone_surrogate", f"half of a surrogate pair: {error.object[error.start]!a}") from None
    return value


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text, strictly: no duplicate keys, no NaN."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise Reject("invalid_json", f"{error.msg} at character {error.pos}", place) from None
    except ValueError as error:
        raise Reject("invalid_number", str(error), place) from None
    except RecursionError:
        raise Reject("nested_too_deep", "lists or objects are nested too deep to parse", place) from None


def parse_record(raw: Any) -> Record:
    """A record from the value of a JSON line or the row of a table."""
    if not isinstance(raw, Mapping):
        raise Reject("not_object", f"found {_kind(raw)}, expected an object with `messages`")
    _reject_later(raw)
    messages = _messages(raw)
    images = _images_column(raw.get("images"))
    parsed = []
    for i, message in enumerate(messages):
        one, images = _message(message, f"messages[{i}]", images)
        parsed.append(one)
    if images:
        raise Reject(
            "count_mismatch", f"`images` has {len(images)} more entries than there are bare image parts", "images"
        )
    if not any(message.role == "assistant" for message in parsed):
        raise Reject("no_assistant", "no assistant turn: nothing to learn from", "messages")
    return Record(tuple(parsed), _unused(raw, messages))


def _reject_later(raw: Mapping[str, Any]) -> None:
    for column, reason in (("tools", "later_tools"), ("videos", "later_video"), ("audios", "later_audio")):
        if raw.get(column) not in (None, [], "", "[]"):
            raise Reject(reason, f"`{column}` is set; this version cannot use it yet", column)
    if raw.get("messages") is None and "messages" not in raw and isinstance(raw.get("text"), str):
        raise Reject("later_text", "a plain `text` record; this version reads `messages` only", "text")


def _messages(raw: Mapping[str, Any]) -> Sequence[Any]:
    if "messages" not in raw:
        raise Reject("missing_messages", f"no `messages`; found the columns {', '.join(map(str, raw)) or 'none'}")
    messages = raw["messages"]
    if isinstance(messages, str):  # a JSON column of a table
        messages = parse_json(messages, "messages")
    if not isinstance(messages, list):
        raise Reject("messages_not_list", f"`messages` is {_kind(messages)}, expected a list", "messages")
    if not messages:
        raise Reject("empty_messages", "`messages` is an empty list", "messages")
    return messages


def _images_column(images: Any) -> list[ImageRef]:
    if images is None:
        return []
    if not isinstance(images, list):
        raise Reject("bad_part", f"`images` is {_kind(images)}, expected a list", "images")
    return [_image_ref(image, f"images[{i}]") for i, image in enumerate(images)]


def _image_ref(value: Any, place: str) -> ImageRef:
    if isinstance(value, Mapping):  # Hugging Face Image: struct{bytes, path}
        unknown = [key for key in value if key not in ("bytes", "path")]
        if unknown:
            raise Reject("bad_part", f"key {unknown[0]!r} in an image struct; expected 'bytes' and 'path'", place)
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return ImageRef("bytes", value)
    if isinstance(value, str):
        return ImageRef("path", value)
    raise Reject("bad_part", f"an image is {_kind(value)}, expected a path, a data URI or bytes", place)


def _message(message: Any, place: str, images: list[ImageRef]) -> tuple[Message, list[ImageRef]]:
    """The typed message, and the entries of `images` that its bare parts left over."""
    if not isinstance(message, Mapping):
        raise Reject("message_not_object", f"a message is {_kind(message)}, expected an object", place)
    role = message.get("role")
    if role is None:
        raise Reject("missing_role", f"no `role`; found the keys {', '.join(map(str, message))}", place)
    if role == "tool" or message.get("tool_calls") or message.get("function_call") is not None:
        raise Reject("later_tools", "a tool call or tool result; this version cannot use it yet", place)
    if message.get("audio") is not None:
        raise Reject("later_audio", "a spoken message; this version cannot use it yet", place)
    if role not in ROLES:
        raise Reject("unknown_role", f"role {role!r}; expected one of {', '.join(ROLES)}", place)
    content, images = _content(message, place, images)
    parsed = Message(role, content, _weight(message, place), _reasoning(message, place))
    if role == "assistant" and parsed.images:
        raise Reject("image_in_assistant", "an image in an assistant turn; the model only reads images", place)
    return parsed, images


def _content(
    message: Mapping[str, Any], place: str, images: list[ImageRef]
) -> tuple[str | tuple[Part, ...], list[ImageRef]]:
    place = f"{place}.content"
    if "content" not in message:
        raise Reject("missing_content", "no `content`", place)
    content = message["content"]
    if content is None:
        raise Reject("null_content", "`content` is null and there is no tool call", place)
    if isinstance(content, str):
        return content, images
    if not isinstance(content, list):
        raise Reject("bad_content_type", f"`content` is {_kind(content)}, expected a string or a list of parts", place)
    if not content:
        raise Reject("empty_content", "`content` is an empty list", place)
    parts = []
    for i, part in enumerate(content):
        one, images = _part(part, f"{place}[{i}]", images)
        parts.append(one)
    return tuple(parts), images


def _part(part: Any, place: str, images: list[ImageRef]) -> tuple[Part, list[ImageRef]]:
    if not isinstance(part, Mapping):
        raise Reject("part_not_object", f"a part is {_kind(part)}, expected an object", place)
    kind = part.get("type")
    if kind in _LATER_PARTS:
        raise Reject(_LATER_PARTS[kind], f"a part of type {kind!r}; this version cannot use it yet", place)
    if kind not in _PART_KEYS:
        found = f"type {kind!r}" if kind is not None else f"no `type`; found the keys {', '.join(map(str, part))}"
        raise Reject("unknown_part_type", f"{found}{nearest(str(kind), _PART_KEYS)}", place)
    # A row of a table has every key of its struct, null where another part uses it.
    unknown = [key for key, value in part.items() if value is not None and key not in ("type", *_PART_KEYS[kind])]
    if unknown:
        raise Reject("bad_part", f"key {unknown[0]!r} in a part of type {kind!r}; expected {kind!r}", place)
    value = part.get(kind)
    if kind == "text":
        return Text(_text(value, place)), images
    if kind == "image_url":
        return Image(ImageRef("url", _url(value, place)), place), images
    if value is not None:
        return Image(_image_ref(value, place), place), images
    if not images:
        raise Reject("count_mismatch", "a bare image part without an entry left in `images`", place)
    return Image(images[0], place), images[1:]


def _text(value: Any, place: str) -> str:
    if value is None:
        raise Reject("part_missing_field", "a text part without `text`", place)
    if not isinstance(value, str):
        raise Reject("bad_part", f"`text` is {_kind(value)}, expected a string", place)
    return value


def _url(value: Any, place: str) -> str:
    if isinstance(value, Mapping):
        unknown = [key for key, v in value.items() if v is not None and key not in ("url", "detail")]
        if unknown:
            raise Reject("bad_part", f"key {unknown[0]!r} in `image_url`; expected 'url'", place)
        value = value.get("url")
    if value is None:
        raise Reject("part_missing_field", "an image_url part without `url`", place)
    if not isinstance(value, str):
        raise Reject("bad_part", f"`url` is {_kind(value)}, expected a string", place)
    return value


def _weight(message: Mapping[str, Any], place: str) -> int:
    weight = message.get("weight")
    if weight is None:
        return 1
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight not in (0, 1):
        raise Reject("bad_weight", f"weight {weight!r}; expected 0 or 1", f"{place}.weight")
    return int(weight)


def _reasoning(message: Mapping[str, Any], place: str) -> str | None:
    reasoning = message.get("reasoning_content")
    if reasoning is not None and not isinstance(reasoning, str):
        raise Reject("bad_reasoning", f"`reasoning_content` is {_kind(reasoning)}, expected a string", place)
    return reasoning


def _unused(raw: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    columns = [key for key, value in raw.items() if value is not None and key not in _USED_COLUMNS]
    keys = {key for m in messages for key, value in m.items() if value is not None and key not in _USED_MESSAGE_KEYS}
    return (*(f"column {key}" for key in columns), *(f"key messages[].{key}" for key in sorted(keys)))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(pairs)
    if len(obj) != len(pairs):
        keys = [key for key, _ in pairs]
        raise Reject("duplicate_key", f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return obj


def _no_constant(name: str) -> Any:
    raise Reject("invalid_number", f"{name} is not JSON")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", bytes: "bytes", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")
