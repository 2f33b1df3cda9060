"""Settings that may differ from part to part of a model: {default, llm, vision, audio, aligner, <pattern>}.

A pattern is a regular expression that is searched for in the names of parameters as transformers has them in the
model, such as model.language_model.layers.0.self_attn.q_proj.weight; a pattern without any sign is a whole word
between dots. A pattern wins over the part, the part over the default, a later pattern over an earlier pattern.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

from lmms.configs.contract.families import FAMILIES
from lmms.configs.errors import ConfigError, nearest

T = TypeVar("T")

Part = str
"""A part of a model: llm, vision, audio, aligner, or another part of its family."""

PARTS: tuple[Part, ...] = tuple(dict.fromkeys(part for facts in FAMILIES.values() for part in facts.parts))
"""The parts of all families, in the order of tables."""


def patterns(settings: Mapping[str, object]) -> list[str]:
    """The keys that are regular expressions, in their order."""
    return [key for key in settings if key != "default" and key not in PARTS]


def setting_of(settings: Mapping[str, T], part: Part, name: str) -> T:
    """The setting of a parameter by its part and name."""
    matching = [pattern for pattern in patterns(settings) if _matches(pattern, name)]
    return settings[matching[-1] if matching else part if part in settings else "default"]


def check_patterns(key: str, settings: Mapping[str, object]) -> None:
    """ConfigError for a pattern that is no regular expression. key: name of the settings, for the message."""
    for pattern in patterns(settings):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{key}: {pattern!r} is no regular expression ({error}), expected {', '.join(('default', *PARTS))} or a"
                " pattern of parameter names"
            ) from None


def check_parts(key: str, settings: Mapping[str, object], parts: Collection[Part]) -> None:
    """ConfigError for a part that the model does not have. parts: those of the model."""
    for name in settings:
        if name in PARTS and name not in parts:
            known = ", ".join(part for part in PARTS if part in parts)
            raise ConfigError(f"{key} names {name!r}, which this model does not have; it has {known}")


def check_matches(key: str, settings: Mapping[str, object], parameters: Mapping[str, Part]) -> None:
    """ConfigError for a part that the model does not have, or a pattern that matches no name of a parameter.

    parameters: name -> part.
    """
    check_parts(key, settings, set(parameters.values()))
    for pattern in patterns(settings):
        if not any(_matches(pattern, name) for name in parameters):
            raise ConfigError(
                f"{key}: pattern {pattern!r} is in no parameter's name{nearest(pattern, _words(parameters))}"
            )


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern is in a name; a plain word must be a whole part of the name: lm must not match lm_head."""
    return pattern in name.split(".") if re.fullmatch(r"\w+", pattern) else bool(re.search(pattern, name))


def _words(names: Iterable[str]) -> set[str]:
    """Words that a user may have meant: the parts, and the names of modules without the numbers of layers."""
    return {"default", *PARTS, *(word for name in names for word in name.split(".") if not word.isdigit())}
