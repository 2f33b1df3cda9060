"""A line of JSON -> its value, strictly: no duplicate keys, no NaN, and a name for every fault.

The parser is the standard library's, which tells a duplicate key, NaN and a deep nesting apart; faster parsers do not.
"""

import json
import re
from typing import Any

from lmms.configs.words import type_name
from lmms.prep.reject import Reject

MAX_DEPTH = 200
"""Lists and objects inside each other that are read: a bound of ours, since Python's own depends on who calls."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_line(line: bytes) -> Any:
    """The JSON value of one line (without its line feed)."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Reject("not_utf8", f"byte {error.start} of the line is not UTF-8 ({error.reason})") from None
    return parse_json(text, "")


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text, strictly: no duplicate keys, no NaN, no half of a surrogate pair."""
    if text.startswith("\ufeff"):
        raise Reject("invalid_json", "Unexpected UTF-8 BOM (decode using utf-8-sig) at character 0", place)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise Reject("invalid_json", f"{error.msg} at character {error.pos}", place) from None
    except ValueError as error:
        raise Reject("invalid_number", str(error), place) from None
    except RecursionError:
        raise _too_deep(place) from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_too_deep(value):
        raise _too_deep(place)
    if _SURROGATE_ESCAPE.search(text):
        check_text(json.dumps(value, ensure_ascii=False), place)
    return value


def check_text(text: str, place: str) -> None:
    """Reject for half of a surrogate pair, which no text of UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Reject("lone_surrogate", f"half of a surrogate pair: {error.object[error.start]!a}", place) from None


def kind_of(value: Any) -> str:
    """What to call a value in a message: an object, a list, a string, ..."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", bytes: "bytes", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type_name(value))


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return False
        level = [child for each in containers for child in (each.values() if isinstance(each, dict) else each)]
    return any(isinstance(each, dict | list) for each in level)


def _too_deep(place: str) -> Reject:
    return Reject("nested_too_deep", f"lists and objects are nested deeper than {MAX_DEPTH}", place)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    obj = dict(pairs)
    if len(obj) != len(pairs):
        keys = [key for key, _ in pairs]
        raise Reject("duplicate_key", f"key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one object")
    return obj


def _no_constant(name: str) -> Any:
    raise Reject("invalid_number", f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant)
"""json.loads would make a decoder for each line."""
