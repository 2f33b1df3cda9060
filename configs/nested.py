"""Nested plain values: flattened to joined keys, and without the numbers that JSON does not have."""

import math
from collections.abc import Mapping
from typing import Any


def flat(nested: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Joined key -> value of every entry that is no mapping: {"a": {"b": 1}} with "." gives {"a.b": 1}."""
    entries: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            entries |= {f"{name}{separator}{inner}": item for inner, item in flat(value, separator).items()}
        else:
            entries[name] = value
    return entries


def finite(value: Any) -> Any:
    """The same plain value with None for each NaN and each infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
