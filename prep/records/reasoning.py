"""The reasoning of an assistant turn: apart from its content, or as a think block at the start of its text."""

import re
from collections.abc import Mapping
from typing import Any

from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_THINK_BLOCK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


def parse_reasoning(message: Mapping[str, Any], place: str) -> str | None:
    """The reasoning of a message: one of its keys, or its content's `thinking` parts before any other part.

    Raises Reject for several that differ, and for a `thinking` part behind other parts: a template would move it.
    """
    given = {key: message[key] for key in REASONING_KEYS if message.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, str):
            raise Reject("bad_reasoning", f"`{key}` is {kind_of(value)}, expected a string", place)
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    thinking = [part for part in parts if is_thinking(part)]
    if thinking and not all(map(is_thinking, parts[: len(thinking)])):
        raise Reject("bad_reasoning", "a `thinking` part behind other parts; expected all of them first", place)
    if thinking:
        given["thinking parts"] = "".join(_thinking_text(part, place) for part in thinking)
    if len(set(given.values())) > 1:
        raise Reject("bad_reasoning", f"{' and '.join(given)} differ; expected one of them", place)
    return next(iter(given.values()), None)


def is_thinking(part: Any) -> bool:
    """Whether a part of a message's content is reasoning, as in {"type": "thinking", "thinking": "..."}."""
    return isinstance(part, Mapping) and part.get("type") in ("thinking", "reasoning")


def without_think_blocks(text: str) -> str:
    """The text without its think blocks, and without the white space behind them."""
    return _THINK_BLOCK.sub("", text) if "<think>" in text else text


def think_blocks(text: str) -> list[tuple[int, int]]:
    """[start, end) of each think block in a turn's text, with the white space behind it."""
    return [match.span() for match in _THINK_BLOCK.finditer(text)] if "<think>" in text else []


def _thinking_text(part: Mapping[str, Any], place: str) -> str:
    text = part.get(part["type"], part.get("text"))
    if not isinstance(text, str):
        raise Reject("bad_reasoning", f"a `{part['type']}` part without its text", place)
    return text
