"""Bounds of numbers that a user may set."""

import math

from lmms.configs.errors import ConfigError

MOST_SECONDS = 1e7
"""Four months."""


def check_range(key: str, value: float | None, low: float, high: float = math.inf) -> None:
    """ConfigError for a value outside of [low, high]; None is not set."""
    if value is not None and not low <= value <= high:
        wanted = f"at least {low}" if high == math.inf else f"{low} to {high:,.0f}"
        raise ConfigError(f"{key} is {value}, expected {wanted}")
