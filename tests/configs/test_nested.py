"""Nested values as one level of keys, and without what JSON cannot say."""

import math

from lmms.configs.nested import finite, flat


def test_keys_are_joined_down_to_what_is_no_mapping() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": None, "g": {}}
    assert flat(nested, ".") == {"a.b.c": 1, "a.d": [1, {"e": 2}], "f": None}
    assert flat({"sets": {"x.y": {"loss": 1.5}}}, "/") == {"sets/x.y/loss": 1.5}


def test_only_what_is_not_finite_becomes_null() -> None:
    assert finite({"a": math.nan, "b": (1.0, -math.inf), "c": True}) == {"a": None, "b": [1.0, None], "c": True}
