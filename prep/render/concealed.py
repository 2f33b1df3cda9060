"""Special-token text that a record holds stays text: a mark goes into that text before the template, and out after."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from lmms.prep.reject import Reject

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Noncharacters: Unicode keeps them free for such private use, and they have no place in interchanged text."""


def free_mark(values: Any, control: re.Pattern[str], prefix: str) -> str:
    """A character that no text of `values` holds, or "" when no text holds what `control` matches. Raises Reject.

    prefix: what every match begins with; a search for it is fast.
    """
    texts = _strings(values)
    if not any(prefix in text and control.search(text) for text in texts):
        return ""
    mark = next((mark for mark in _MARKS if not any(mark in text for text in texts)), None)
    if mark is None:
        raise Reject(
            "template_error", "the text holds special tokens and all 32 noncharacters U+FDD0..U+FDEF", "messages"
        )
    return mark


def concealed(values: Any, control: re.Pattern[str], mark: str) -> Any:
    """The same nested values with the mark inside every text that `control` matches."""
    return _mapped(values, lambda text: control.sub(lambda token: token[0][0] + mark + token[0][1:], text))


def _strings(value: Any) -> list[str]:
    """Every string in nested lists and dicts, keys of dicts too."""
    strings, values = list[str](), [value]
    while values:
        value = values.pop()
        if isinstance(value, str):
            strings.append(value)
        elif isinstance(value, list | tuple):
            values += value
        elif isinstance(value, Mapping):
            strings += map(str, value)
            values += value.values()
    return strings


def _mapped(value: Any, function: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return function(value)
    if isinstance(value, Mapping):
        return {function(str(key)): _mapped(item, function) for key, item in value.items()}
    return [_mapped(item, function) for item in value] if isinstance(value, list | tuple) else value
