"""What is profiled: off unless set, and what contradicts is refused with the key."""

from typing import Any

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.settings.profile import ProfileConfig


def test_nothing_is_profiled_unless_it_is_set() -> None:
    assert ProfileConfig().start is None
    ProfileConfig(oom_stacks=True)
    ProfileConfig(start=2, steps=1, ranks=(7, 0), memory=True, stacks=True)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": 1}, r"profile\.start is 1, expected at least 2; the step before warms the profiler up"),
        ({"start": 5, "steps": 0}, r"profile\.steps is 0, expected at least 1"),
        ({"start": 5, "ranks": ()}, r"profile\.ranks is \[\], expected one or more ranks from 0 on, each once"),
        ({"start": 5, "ranks": (-1,)}, r"profile\.ranks\[0\] is -1, expected at least 0"),
        ({"start": 5, "ranks": (1, 1)}, r"profile\.ranks is \[1, 1\]"),
        ({"steps": 5}, r"profile\.steps is set, but profile\.start is not"),
        ({"ranks": (1,)}, r"profile\.ranks is set, but profile\.start is not"),
        ({"memory": True}, r"profile\.memory is set, but profile\.start is not"),
        ({"stacks": True}, r"profile\.stacks is set, but profile\.start is not"),
    ],
)
def test_what_cannot_be_used_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ProfileConfig(**settings)
