"""What counts as nothing in a record: three rules, by what stands in the place.

is_absent       a column or key of lists and objects
is_null_image   an entry of such a list
is_blank        a column of text, where `[]` and `null` are words
"""

from collections.abc import Mapping
from typing import Any


def is_absent(value: Any) -> bool:
    """Whether a column or key holds nothing: null, empty, `[null]`, a struct of nulls, or the JSON text of such."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "[null]")
    if isinstance(value, Mapping):
        return all(item is None for item in value.values())
    return value is None or (isinstance(value, list) and all(map(is_null_image, value)))


def is_null_image(value: Any) -> bool:
    """Whether an entry names no picture: null, or a struct of nulls as tables have them."""
    return value is None or (isinstance(value, Mapping) and value != {} and is_absent(value))


def is_blank(value: Any) -> bool:
    """Whether a column of text, or of a list of texts, holds none: null, an empty text, an empty list."""
    return value is None or value == "" or value == []
