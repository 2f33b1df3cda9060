"""Plain values (dict, list, str, int, float, bool, None) checked against the types of a dataclass, and made into it.

Three steps, with time to merge several sources between them: check each source, then missing_keys, then build.
A type is str, bool, int, float, Literal, a dataclass, tuple[T, ...], tuple[A, B], dict[str, T], Mapping[str, T], Json,
one of these `| None`, or a dataclass or tuple `| str`. An int may stand for a float, never a float for an int; a bool
is no int; infinities and NaN are refused; a string is never empty, nor a list. For a dict[str, T] a T alone means
{default: T}; keys that are unset or null keep the values of the field's default. A Mapping[str, T] has the keys that
the user writes. A number may have a range: Annotated[int, Range(1)].
"""

import sys
from collections.abc import Iterator, Mapping
from collections.abc import Mapping as MappingType
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, NewType, Union, cast, get_args, get_origin, get_type_hints

from lmms.configs.errors import ConfigError, nearest
from lmms.configs.ranges import bounds_of

NO_NAMES: Mapping[str, str] = MappingProxyType({})

Json = NewType("Json", object)
"""A value of any kind: null, true, a number, a string, a list or a mapping of such."""


def check(hint: Any, value: Any, key: str, origin: str, other_names: Mapping[str, str] = NO_NAMES) -> Any:
    """`value` in the form of the type `hint`, except that a dataclass is still a dict of the keys that are set.

    Raises ConfigError that names `origin` (a file, an override; "" for none) and the dotted key below `key`.
    other_names: unknown key -> what the user may have meant, see OTHER_NAMES.
    """
    where = f"{origin}: " if origin else ""
    inner = without_none(hint)
    if inner is not hint and value is None:
        return None
    if get_origin(inner) is Annotated:
        plain, *metadata = get_args(inner)
        number = check(plain if inner is hint else plain | None, value, key, origin, other_names)
        bounds = bounds_of(metadata)
        if bounds.holds(number):
            return number
        advice = f"; {bounds.advice}" if bounds.advice else ""
        raise ConfigError(f"{where}{key} is {value}, expected {bounds}{advice}")
    if inner is Json:
        return value
    if _is_union(inner) and (isinstance(value, str | list | tuple | dict) or is_dataclass(value)):
        return check(_alternative(inner, value), value, key, origin, other_names)
    if is_dataclass(value) and isinstance(inner, type) and isinstance(value, inner):
        return value
    if is_dataclass(inner) and isinstance(value, dict):
        return _check_keys(inner, value, key, origin, other_names)
    if get_origin(inner) is dict:
        items = value if isinstance(value, dict) else {"default": value}
        item_hint = get_args(inner)[1] | None
        return {name: check(item_hint, item, f"{key}.{name}", origin, other_names) for name, item in items.items()}
    if get_origin(inner) is MappingType and isinstance(value, Mapping):
        item_hint = get_args(inner)[1]
        return {str(name): check(item_hint, item, f"{key}.{name}", origin, other_names) for name, item in value.items()}
    if get_origin(inner) is tuple and isinstance(value, list | tuple):
        hints = _item_hints(inner, len(value))
        if len(hints) == len(value):
            return tuple(check(hints[i], item, f"{key}[{i}]", origin, other_names) for i, item in enumerate(value))
    if inner is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if inner in (str, bool, int) and type(value) is inner and value != "" and not _too_large(value):
        return value
    if get_origin(inner) is Literal and (type(value), value) in [(type(choice), choice) for choice in get_args(inner)]:
        return value
    raise ConfigError(f"{where}{key} is {_described(value)}, expected {expected(hint)}")


def check_fields(config: Any, section: str = "") -> None:
    """ConfigError for a field of a dataclass whose value does not fit its type. section: key of the dataclass, if any.

    For `__post_init__`: settings from Python code are checked like settings from a file.
    """
    for name, (hint, _) in _fields(type(config)).items():
        check(hint, getattr(config, name), f"{section}.{name}" if section else name, "")


def check_taken_back(kind: Any, low: dict[str, Any], value: dict[str, Any], key: str, origin: str) -> None:
    """ConfigError for a null in a dict[str, T] that takes nothing back: neither `low` nor the default has its key.

    kind: a dataclass. low: the checked keys of weaker sources. value: the checked keys of the next source.
    """
    defaults = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    for name, (hint, _) in _fields(kind).items():
        inner, items, path = without_none(hint), value.get(name), f"{key}.{name}" if key else name
        if not isinstance(items, dict):
            continue
        weaker = low.get(name) or {}
        if is_dataclass(inner):
            check_taken_back(inner, weaker, items, path, origin)
        for item in items if get_origin(inner) is dict else ():
            if items[item] is None and item not in {**defaults.get(name, {}), **weaker}:
                first, colon, rest = item.partition(":")
                advice = f"; write '{first}: {rest}', with a space" if colon else ""
                raise ConfigError(f"{origin}: {path}.{item} is null, but nothing set it before{advice}")


def is_text(kind: Any, key: str, text: str) -> bool:
    """Whether a dotted key of a dataclass has a string as its value; a list may stand for it if the text is a list."""
    name, dot, rest = key.partition(".")
    inner = without_none(_fields(kind)[name][0]) if name in _fields(kind) else None
    if dot:
        return is_dataclass(inner) and is_text(inner, rest, text)
    return inner is str or (_is_union(inner) and str in get_args(inner) and not text.lstrip().startswith("["))


def missing_keys(hint: Any, value: Any, key: str) -> Iterator[str]:
    """Dotted names of the required keys that are missing in a checked value."""
    inner = _alternative(without_none(hint), value)
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from missing_keys(_item_hints(inner, len(value))[i], item, f"{key}[{i}]")
    if is_dataclass(inner) and isinstance(value, dict):
        for name, (field_hint, required) in _fields(inner).items():
            path = f"{key}.{name}" if key else name
            if name in value or (required and is_dataclass(field_hint)):
                yield from missing_keys(field_hint, value.get(name, {}), path)
            elif required:
                yield path


def build(hint: Any, value: Any) -> Any:
    """A checked value without missing keys, with dataclasses in place of the dicts."""
    inner = _alternative(without_none(hint), value)
    if isinstance(value, tuple):
        return tuple(build(_item_hints(inner, len(value))[i], item) for i, item in enumerate(value))
    if isinstance(value, dict) and is_dataclass(inner):
        known = _fields(inner)
        values = {name: build(known[name][0], value.get(name, {})) for name in known if name in value or known[name][1]}
        return cast(Any, inner)(**_over_defaults(inner, values))
    return value


def _over_defaults(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a dataclass's fields, each dict merged over the dict that is the field's default."""
    defaults = {f.name: f.default_factory() for f in fields(kind) if f.default_factory is not MISSING}
    return {
        name: _laid_over(defaults[name], value) if isinstance(defaults.get(name), dict) else value
        for name, value in values.items()
    }


def _laid_over(default: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    """The default with the entries of `value` over it; a null takes an entry back to the default."""
    return {**default, **{name: item for name, item in value.items() if item is not None}}


def _check_keys(
    kind: Any, body: dict[str, Any], key: str, origin: str, other_names: Mapping[str, str]
) -> dict[str, Any]:
    known = _fields(kind)
    paths = {name: f"{key}.{name}" if key else name for name in body}
    for name in body:
        if name not in known:
            raise ConfigError(f"{origin}: unknown key {paths[name]!r}{_meant(paths[name], name, known, other_names)}")
    return {name: check(known[name][0], value, paths[name], origin, other_names) for name, value in body.items()}


def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """name -> (type, whether it has to be set)."""
    hints = get_type_hints(kind, include_extras=True)
    return {f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING) for f in fields(kind)}


def without_none(hint: Any) -> Any:
    """X for `X | None`, else the hint itself."""
    if not _is_union(hint) or NoneType not in get_args(hint):
        return hint
    return Union[tuple(arg for arg in get_args(hint) if arg is not NoneType)]  # noqa: UP007


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _alternative(hint: Any, value: Any) -> Any:
    """The type that this value is to have: of a dataclass or a list `| str`, str for a string."""
    if not _is_union(hint):
        return hint
    (kind,) = (arg for arg in get_args(hint) if arg is not str)
    return str if isinstance(value, str) else kind


def _item_hints(hint: Any, length: int) -> tuple[Any, ...]:
    """The type of each item of a tuple of this length."""
    args = get_args(hint)
    return args[:1] * length if args[-1] is Ellipsis else args


def _meant(path: str, name: str, known: dict[str, tuple[Any, bool]], other_names: Mapping[str, str]) -> str:
    """A hint for an unknown key: our name for another framework's key, the same key of a section, or the nearest.

    path: the whole key, which ends with its name.
    """
    if name in other_names:
        ours = other_names[name]
        return f"; {ours}" if " " in ours else f"; it is {ours!r} here"
    sections = {section: without_none(hint) for section, (hint, _) in known.items()}
    within = [f"{section}.{name}" for section, hint in sections.items() if is_dataclass(hint) and name in _fields(hint)]
    return f"; did you mean {within[0]!r}?" if within else nearest(name, known, path.removesuffix(name))


def _too_large(value: Any) -> bool:
    return type(value) is int and not -(2**63) <= value < 2**63


def _described(value: Any) -> str:
    names = {
        dict: "a mapping",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    name = (
        "an empty string"
        if value == ""
        else "an integer of more than 64 bits"
        if _too_large(value)
        else names.get(type(value), type(value).__name__)
    )
    return "null" if value is None else f"{value!r:.60} ({name})"


def expected(hint: Any) -> str:
    """A value of this type, in words, without the range of a number."""
    inner, args = without_none(hint), get_args(hint)
    if inner is not hint:
        return f"{expected(inner)} or null"
    if _is_union(hint):
        return " or ".join(map(expected, args))
    if get_origin(hint) is MappingType:
        return f"a mapping to {expected(args[1])}"
    if get_origin(hint) is Annotated:
        return expected(args[0])
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, args))
    if get_origin(hint) is tuple and args[-1] is Ellipsis:
        return f"a list, each item {expected(args[0])}"
    if get_origin(hint) is tuple:
        return f"a list of {len(args)}: {', '.join(map(expected, args))}"
    if get_origin(hint) is dict:
        return f"{expected(args[1])}, or a mapping to such"
    if is_dataclass(hint):
        return "a mapping of " + ", ".join(_fields(hint))
    names = {str: "a string", bool: "true or false", int: "an integer", float: "a finite number", Json: "any value"}
    return names[hint]
