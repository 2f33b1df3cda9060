"""Run files: YAML that may extend others, then `key.sub=value` overrides, then options, into a frozen config.

    default of the dataclass  <  files of `extends`, in order  <  the file  <  overrides  <  values

An override's value is YAML; but the value of a string setting is taken literally, unless it is quoted or null.
`extends: PATH | [PATHS]` is relative to the file with that key; a file that is extended in several ways counts once,
before all files that extend it. Any other path in a file stays as written: relative to the working directory.
Every source is checked on its own, so an error names the file or the override that is wrong.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from lmms.configs.errors import ConfigError, refuse_file_limit
from lmms.configs.other_names import OTHER_NAMES
from lmms.configs.typed import build, check, check_taken_back, is_text, missing_keys
from lmms.configs.words import type_name
from lmms.configs.yaml12 import format_yaml, parse_yaml

T = TypeVar("T")


def load_config(
    kind: type[T],
    file: str | Path | None,
    overrides: Sequence[str] = (),
    values: Mapping[str, object] = MappingProxyType({}),
) -> T:
    """A config from a run file, `key.sub=value` overrides and `values` (dotted key -> value, only keys that are set).

    Raises ConfigError for a file that cannot be read, an unknown key (with the nearest known key), a value of the wrong
    type, missing required keys (all of them at once), and for settings that the dataclass itself refuses.
    """
    settings: dict[str, Any] = {}
    for origin, layer in _layers(kind, file, overrides, values):
        checked = check(kind, layer, "", origin, OTHER_NAMES.get(kind, {}))
        check_taken_back(kind, settings, checked, "", origin)
        settings = _merge(settings, checked)
    missing = list(missing_keys(kind, settings, ""))
    if missing:
        origin, place = (f"{file}: ", "the file") if file else ("", "a file")
        raise ConfigError(
            f"{origin}required but not set: {', '.join(missing)}; write them into {place}, or give them as KEY=VALUE"
        )
    return cast(T, build(kind, settings))


def to_yaml(config: object) -> str:
    """The whole config as YAML, in the order of its fields; load_config reads the same config from it."""
    return format_yaml(asdict(cast(Any, config)))


def _layers(
    kind: type, file: str | Path | None, overrides: Sequence[str], values: Mapping[str, object]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(origin, nested keys) of every source, the weakest first."""
    if file is not None:
        yield from _file_layers(Path(file), ()).values()
    for override in overrides:
        origin = f"override {override!r}"
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"{origin} has no '='; expected KEY=VALUE, such as optim.lr=1e-5")
        if not text.strip():
            raise ConfigError(f"{origin} has no value; expected KEY=VALUE, with null to take a setting back")
        yield origin, _nested(key.strip(), _value(kind, key.strip(), text, origin))
    for key, value in values.items():
        yield "options", _nested(key, value)


def _value(kind: type, key: str, text: str, origin: str) -> Any:
    """The value of an override. A path may hold what YAML would take for a number, a comment or a mapping."""
    literal = is_text(kind, key, text) and text.strip() not in ("null", "~")
    literal = literal and not text.lstrip().startswith(("'", '"'))
    return text.strip() if literal else parse_yaml(text, origin)


def _file_layers(file: Path, extended_by: tuple[Path, ...]) -> dict[Path, tuple[str, dict[str, Any]]]:
    """resolved path -> (path as written, keys) of a file and of all files that it extends, the weakest first."""
    chain = (*extended_by, file)
    if file.resolve() in [path.resolve() for path in extended_by]:
        raise ConfigError(f"extends runs in a circle: {' -> '.join(map(str, chain))}")
    body = _read(file)
    parents = body.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{file}: extends is {parents!r}, expected a path or a list of paths")
    layers: dict[Path, tuple[str, dict[str, Any]]] = {}
    for parent in parents:
        layers |= _file_layers(file.parent / parent, chain)
    return {**layers, file.resolve(): (str(file), body)}


def read_text(file: Path) -> str:
    """The text of a file that a setting names; ConfigError if there is none."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        refuse_file_limit(error)
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 (byte {error.start}): {error.reason}") from error


def _read(file: Path) -> dict[str, Any]:
    body = parse_yaml(read_text(file), str(file))
    if not isinstance(body, dict | None):
        raise ConfigError(f"{file} holds {type_name(body)}, expected keys and values")
    return body or {}


def _nested(key: str, value: object) -> dict[str, Any]:
    head, dot, rest = key.partition(".")
    return {head: _nested(rest, value) if dot else value}


def _merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """The nested keys of both; where both set one, `high` wins."""
    nested = [key for key in high if isinstance(high[key], dict) and isinstance(low.get(key), dict)]
    return {**low, **high, **{key: _merge(low[key], high[key]) for key in nested}}
