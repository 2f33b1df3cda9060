"""Settings on a command line: KEY=VALUE, or --key VALUE with dashes or underscores, among other words."""

import inspect
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from lmms.configs.errors import ConfigError
from lmms.configs.help import field_help
from lmms.configs.typed import without_none

ANY_OPTION: dict[str, Any] = {"ignore_unknown_options": True}
"""Typer settings of a command that reads settings: an unknown option arrives among the words."""

_SWITCH = "[true|false]"

Command = TypeVar("Command", bound=Callable[..., Any])


def read_settings(words: Sequence[str], kind: type, options: Collection[str]) -> tuple[list[str], list[str]]:
    """(words that are no settings, settings as KEY=VALUE), both in the order given.

    kind: the config class of the settings. options: the options that the command itself knows, with their dashes. A
    word with "=" is a setting, unless a file of that name exists or its key is no name, as in ./a=b. An option without
    a value is true. ConfigError for an option that is close to one of `options` and no setting.
    """
    known = {field.name for field in fields(kind)}
    left, others, settings = deque(words), [], []
    while left:
        word = left.popleft()
        name, equals, value = word.partition("=")
        if word.startswith("--") and len(word) > 2:
            key = name.removeprefix("--").replace("-", "_")
            close = get_close_matches(name, options, n=1)
            if close and _section(key) not in known:
                raise ConfigError(f"there is no option {name}; did you mean {close[0]}?")
            if not equals:
                value = "true" if not left or left[0].startswith("--") else left.popleft()
            settings.append(f"{key}={value}")
        elif word.startswith("-"):
            raise ConfigError(f"there is no option {word}; a setting is KEY=VALUE or --key VALUE")
        elif not Path(word).exists() and (_section(word) in known or (equals and _section(name).isidentifier())):
            settings.append(word)
        else:
            others.append(word)
    return others, settings


def options_of(command: Callable[..., Any]) -> list[str]:
    """The options that a command itself knows, with their dashes."""
    options: list[str] = []
    for name, hint in get_type_hints(command, include_extras=True).items():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, typer.models.OptionInfo):
                options += info.param_decls or ["--" + name.replace("_", "-")]
    return options


def with_options(kind: type, but: Collection[str]) -> Callable[[Command], Command]:
    """A command with an option for every field of a config, except those in `but`; they arrive as **options.

    Each option is None, or the text that was given: load_config reads the text as it reads KEY=VALUE.
    """
    texts, hints = field_help(kind), get_type_hints(kind)

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        *named, _ = signature.parameters.values()
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[str | None, typer.Option(help=texts[name], metavar=_word(hints[name]))],
            )
            for name in hints
            if name not in but
        ]
        command.__signature__ = signature.replace(parameters=[*named, *made])  # type: ignore[attr-defined]
        return command

    return decorate


class WithSwitches(TyperCommand):
    """A command whose settings that are true or false may stand without a value: --allow-network."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The words that are left, after `true` was put behind each switch without a value."""
        switches = {name for param in self.params for name in param.opts if getattr(param, "metavar", "") == _SWITCH}
        filled = []
        for word, following in zip_longest(args, args[1:], fillvalue="--"):
            filled.append(word)
            if word in switches and following.startswith("-"):
                filled.append("true")
        return super().parse_args(ctx, filled)


def _section(key: str) -> str:
    return key.partition(".")[0]


def _word(hint: Any) -> str:
    """Placeholder for the value of an option in the help."""
    inner = without_none(hint)
    if get_origin(inner) is Literal:
        return "|".join(get_args(inner))
    return {int: "INTEGER", float: "NUMBER", bool: _SWITCH}.get(inner, "TEXT")
