"""Random changes to a line of JSON: of its bytes, or of its value, at a random place."""

import json
import random
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from tools.faults.sound_files import damaged

ODD: tuple[Any, ...] = (
    *(None, "", " ", "text", "user", "assistant", "system", "tool", "a.png", "<image>", "[]", "{}", "null", "\u0000"),
    *(0, 1, -1, 2, 0.5, 10**30, 1e300, True, False, [], {}, [None], [[]], [{}], {"": None}, ["a.jpg"]),
    *([{"type": "text", "text": "t"}], [{"type": "image"}], {"role": "user", "content": "t"}, {"name": "f"}),
    *([{"function": {"name": "f", "arguments": "{}"}}], {"function": {"name": "f", "arguments": {}}}),
)
NAMES = (
    *("role", "content", "messages", "conversations", "from", "value", "text", "type", "image", "images", "videos"),
    *("audios", "tools", "functions", "tool_calls", "function_call", "tool_call_id", "name", "id", "weight", "loss"),
    *("train", "mask", "loss_weight", "reasoning", "reasoning_content", "thinking", "system", "system_prompt"),
    *("chat_template_kwargs", "prompt", "completion", "chosen", "rejected", "image_path", "", "Role", "content "),
)
_TEXTS = (
    "NaN",
    "Infinity",
    "-0",
    "1e999",
    '"\\ud800"',
    '"\\u0000"',
    '{"a":1,"a":2}',
    "[" * 201 + "]" * 201,
    "9" * 5000,
)
_HOLE = "@hole@"


def mutated(line: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """A copy of a line with one to three changes. others: lines from which values may come."""
    if rng.random() < 0.15:
        return damaged(line, rng).replace(b"\n", b" ")
    value = json.loads(line)
    hole = ""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        value, text = _changed(value, others, rng)
        hole = text or hole
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).replace(json.dumps(_HOLE), hole or "0").encode()


def _changed(value: Any, others: Sequence[bytes], rng: random.Random) -> tuple[Any, str]:
    """The value with a change at a random place, and the text that stands for _HOLE in it, if any."""
    places = list(_places(value))
    if not places:
        return deepcopy(rng.choice(ODD)), ""
    holder, key = rng.choice(places)
    how, text = rng.randrange(8), ""
    if how == 0:
        del holder[key]
    elif how == 1:
        holder[key] = deepcopy(rng.choice(ODD))
    elif how == 2:
        holder[key], text = _HOLE, rng.choice(_TEXTS)
    elif how == 3:
        _put(holder, key, deepcopy(rng.choice(ODD)), rng)
    elif how == 4:
        other, at = rng.choice(places)
        holder[key], other[at] = deepcopy(other[at]), deepcopy(holder[key])
    elif how == 5 and isinstance(holder, dict):
        holder[rng.choice(NAMES)] = holder.pop(key)
    elif how == 6:
        pieces = list(_places(json.loads(rng.choice(others))))
        other, at = rng.choice(pieces) if pieces else ([None], 0)
        _put(holder, key, other[at], rng)
    elif isinstance(holder[key], str):
        word = rng.choice(("<think>a</think>", "<|im_end|>", "<image>", " ", "\n", "\u2028", "é", "</think>"))
        cut = rng.randint(0, len(holder[key]))
        holder[key] = holder[key][:cut] + word + holder[key][cut:]
    return value, text


def _put(holder: Any, key: Any, value: Any, rng: random.Random) -> None:
    if isinstance(holder, dict):
        holder[rng.choice(NAMES)] = value
    else:
        holder.insert(key, value)


def _keys(holder: Any) -> Sequence[Any]:
    return list(holder) if isinstance(holder, dict) else range(len(holder))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(holder, key) of each value inside a JSON value."""
    for key in _keys(value) if isinstance(value, dict | list) else ():
        yield value, key
        yield from _places(value[key])
