"""TRL: {prompt, completion}, strings or lists of messages; or {messages, images}, pictures before the first question.

Only the completion is learned, whatever the setting `targets`. Strings are plain text, without a chat template.
`prompt` alone, and answers to compare (`chosen`, `rejected`, `label`), are rejected: nothing of them is learned by
imitation.
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import listed, media, missing
from lmms.prep.records.strict_json import kind_of
from lmms.prep.records.weights import SWITCHES, WEIGHT_KEYS, message_weight
from lmms.prep.reject import Reject

_IMAGES = ("images", "image")


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("label") is not None:
        raise Reject("preference_data", "`label`: answers to prefer or avoid; only answers to learn fit", "label")
    prompt, completion = record.get("prompt"), record.get("completion")
    if record.get("messages") is not None:
        turns = listed(record, "messages")
        places = tuple(f"messages[{i}]" for i in range(len(turns)))
    elif prompt is None:
        raise missing(record, "`prompt` or `messages`")
    elif completion is None:
        raise Reject("no_assistant", "`prompt` without `completion`: nothing to learn from", "prompt")
    elif isinstance(prompt, str) and isinstance(completion, str):
        return Normal(record, document="completion")
    else:
        turns, places = _both(record)
    entries = media({name: record.get(name) for name in _IMAGES})
    messages = _with_pictures(turns, len(entries.get("images", [])))
    return Normal(renamed(record, ("prompt", "completion", *_IMAGES), messages=messages, **entries), places)


def _both(record: Mapping[str, Any]) -> tuple[list[Any], tuple[str, ...]]:
    prompt, completion = ([_turn(turn, name) for turn in listed(record, name)] for name in ("prompt", "completion"))
    asked = [_context(turn, f"prompt[{i}]") for i, turn in enumerate(prompt)]
    places = [f"{name}[{i}]" for name in ("prompt", "completion") for i in range(len(listed(record, name)))]
    return [*asked, *completion], tuple(places)


def _context(turn: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A turn of the prompt, which is not learned whatever its role. A weight of 1 says nothing: exports write it."""
    weight = message_weight(turn, True, place)
    if weight not in (0, 1) or (weight and any(turn.get(flag) is not None for flag in SWITCHES)):
        message = "a flag asks to learn a turn of `prompt`, of which nothing is learned; move the turn to `completion`"
        raise Reject("conflicting_weights", message, place)
    return {**{key: value for key, value in turn.items() if key not in WEIGHT_KEYS}, "weight": 0}


def _turn(turn: Any, column: str) -> Mapping[str, Any]:
    if not isinstance(turn, Mapping):
        raise Reject("message_not_object", f"a message is {kind_of(turn)}, expected an object", column)
    return turn


def _with_pictures(turns: list[Any], pictures: int) -> list[Any]:
    """The turns, with all pictures before the first question if that is a string."""
    first = next((i for i, turn in enumerate(turns) if isinstance(turn, Mapping) and turn.get("role") == "user"), None)
    if not pictures or first is None or not isinstance(turns[first].get("content"), str):
        return turns
    parts = [*[{"type": "image"}] * pictures, {"type": "text", "text": turns[first]["content"]}]
    return [*turns[:first], {**turns[first], "content": parts}, *turns[first + 1 :]]


def _fits(record: Mapping[str, Any]) -> bool:
    return "prompt" in record and not any(name in record for name in ("messages", "response", "answer", "output"))


FORM = Form(("messages", "prompt", "completion"), _fits, _read)
