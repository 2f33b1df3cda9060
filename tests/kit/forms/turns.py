"""Words that the examples of the forms are written in."""

from collections.abc import Sequence
from typing import Any, TypeAlias

Turn: TypeAlias = tuple[str, Any]
"""Role and content, see `turns` in tests/kit/forms/read.py; of a text without turns a kind and its text or picture."""
Examples: TypeAlias = Sequence[tuple[dict[str, Any], list[Turn]]]
"""Records, each with what its system reads out of the record."""

U, A, S, T = "user", "assistant", "system", "tool"
LEARNED, CONTEXT, PICTURE = "learned", "context", "picture"
IMAGE, ADDRESS = ("image",), ("image_url",)
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
CALLED = ("weather", {"city": "Rome"})
FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": FUNCTION}


def said(*texts: str) -> list[dict[str, str]]:
    """ShareGPT turns, human first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def chat(*texts: Any) -> list[dict[str, Any]]:
    """OpenAI turns, user first."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def answer(content: Any, **keys: Any) -> dict[str, Any]:
    """An OpenAI turn of the assistant."""
    return {"role": "assistant", "content": content, **keys}


def text(value: str) -> dict[str, str]:
    """An OpenAI part of text."""
    return {"type": "text", "text": value}
