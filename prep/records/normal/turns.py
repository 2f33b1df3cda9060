"""Turns of other systems: their lists, their roles, and the tags in their text that stand for media."""

import re
from collections.abc import Mapping
from typing import Any

from lmms.configs.words import counted
from lmms.prep.records.absent import is_absent, is_blank, is_null_image
from lmms.prep.records.media.bare import json_list
from lmms.prep.records.parts import sources
from lmms.prep.records.strict_json import kind_of, parse_json, parse_line
from lmms.prep.reject import Reject

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot"), "assistant"),
    **dict.fromkeys(("tool", "tool_response", "observation", "observations", "function_response"), "tool"),
}
"""Names of roles -> ours. Any other name stays, for the setting `roles`, or is rejected."""
CALLS = ("function_call", "tool_call")
"""Roles of turns that hold calls as JSON."""

_TAG = re.compile("(<image>|<video>|<audio>)")
_COLUMNS = {"image": ("images", "image"), "video": ("videos", "video"), "audio": ("audios", "audio")}
MEDIA_COLUMNS = tuple(name for names in _COLUMNS.values() for name in names)


def listed(raw: Mapping[str, Any], column: str) -> list[Any]:
    """The list in a column, which a table may hold as JSON text, or as the bytes of JSON text. Raises Reject."""
    value = raw[column]
    if isinstance(value, bytes):
        value = parse_line(value)
    if isinstance(value, str):
        value = parse_json(value, column)
    if not isinstance(value, list):
        raise Reject("messages_not_list", f"`{column}` is {kind_of(value)}, expected a list", column)
    if not value:
        raise Reject("empty_messages", f"`{column}` is an empty list", column)
    return value


def peeked(raw: Mapping[str, Any], column: str) -> list[Any]:
    """The list in a column, or an empty list if there is none: for a look at the first records."""
    try:
        return listed(raw, column)
    except (KeyError, Reject):
        return []


def peeked_parts(raw: Mapping[str, Any], column: str = "messages") -> list[Mapping[str, Any]]:
    """The parts of the turns in a column that are objects, see peeked."""
    contents = [turn.get("content") for turn in peeked(raw, column) if isinstance(turn, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part for part in parts if isinstance(part, Mapping)]


def with_named_value(part: Any) -> Any:
    """The part {type, text} of {type: "text", value}, and the like for every other type; any other part as it is."""
    if not isinstance(part, Mapping) or "value" not in part:
        return part
    others = {key: value for key, value in part.items() if key != "value"}
    return {**others, str(part.get("type")): part["value"]}


def media(raw: Mapping[str, Any]) -> dict[str, list[Any]]:
    """images, videos, audios -> their entries, from the columns of either name; a single entry becomes a list."""
    return {names[0]: entries for names in _COLUMNS.values() if (entries := _entries(raw, names))}


def _entries(raw: Mapping[str, Any], names: tuple[str, ...]) -> list[Any]:
    given = {name: entries for name in names if (entries := _as_list(raw.get(name)))}
    if len(given) == 2 and given[names[0]] != given[names[1]]:
        raise Reject("bad_part", f"`{names[0]}` and `{names[1]}` differ; expected one of them", names[1])
    return next(iter(given.values()), [])


def _as_list(value: Any) -> list[Any]:
    if is_absent(value):
        return []
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = json_list(value)
    return [item for item in (value if isinstance(value, list) else [value]) if not is_null_image(item)]


def with_places(text: str) -> str | list[dict[str, str]]:
    """The parts of a text whose tags are places of media, or the text itself if there is no tag."""
    pieces = _TAG.split(text)
    if len(pieces) == 1:
        return text
    parts = [{"type": piece[1:-1]} if i % 2 else {"type": "text", "text": piece} for i, piece in enumerate(pieces)]
    return [part for part in parts if part.get("text") != ""]


def with_video_places(message: dict[str, Any], entries: Mapping[str, list[Any]]) -> dict[str, Any]:
    """The message with tags of pictures as places of videos, in a record of videos alone, as in LLaVA-Video."""
    if not entries.get("videos") or entries.get("images") or not isinstance(message["content"], list):
        return message
    return {
        **message,
        "content": [{"type": "video"} if part == {"type": "image"} else part for part in message["content"]],
    }


_COUNTED = (("image", "images", "picture"), ("video", "videos", "video"), ("audio", "audios", "sound"))


def check_counts(messages: list[dict[str, Any]], entries: Mapping[str, list[Any]]) -> None:
    """Reject if the tags of a kind of media are not as many as the media of this kind."""
    parts = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
    for kind, column, noun in _COUNTED:
        tags, given = sum(_is_place(part, kind) for part in parts), len(entries.get(column, []))
        if tags != given:
            in_text = f"{tags:,} {'tag' if tags == 1 else 'tags'} <{kind}> in the text"
            raise Reject("count_mismatch", f"{in_text}, {counted(given, noun)} beside it", column)


def _is_place(part: Any, kind: str) -> bool:
    """Whether a part is the place of a picture, video or sound that stands in a column."""
    is_of_kind = isinstance(part, Mapping) and part.get("type") == kind
    return is_of_kind and all(is_null_image(part.get(key)) for key in sources(kind))


def calls_of(text: Any, place: str) -> dict[str, Any]:
    """The assistant's message for a turn that holds calls as JSON: {name, arguments}, or a list of such.

    Reasoning in a think block before the JSON becomes the content. Raises Reject.
    """
    content: str | None = None
    if isinstance(text, str):
        thought, end, rest = text.rpartition("</think>")
        content = thought + end or None
        text = parse_json(rest, place)
    calls = text if isinstance(text, list) else [text]
    functions = [{"type": "function", "function": call} if isinstance(call, Mapping) else call for call in calls]
    return {"role": "assistant", "content": content, "tool_calls": functions}


def system_turn(raw: Mapping[str, Any], column: str = "system") -> list[dict[str, Any]]:
    """A system turn for the text in a column; none if the column holds none."""
    text = raw.get(column)
    return [] if is_blank(text) else [{"role": "system", "content": text}]


_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "rejected_images", "kto_tag")


def refuse_preferences(raw: Mapping[str, Any]) -> None:
    """Reject for answers that are compared, not learned."""
    column = next((name for name in _PREFERENCES if not is_blank(raw.get(name))), None)
    if column:
        raise Reject("preference_data", f"`{column}`: answers to prefer or avoid; only answers to learn fit", column)


def missing(raw: Mapping[str, Any], expected: str) -> Reject:
    """The reject of a record that lacks what its form needs."""
    columns = ", ".join(map(str, raw)) or "none"
    return Reject("missing_messages", f"no {expected}, as the form of the source has; found the columns {columns}")
