"""A map of fields, {messages: $.a.b, images: [$.pic]}: the columns of a form from wherever their values stand.

A path is names and indexes: $.data.turns, $.files[0].path, or the same without `$.`. A list of paths gives the list of
the values that are there.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from lmms.configs.errors import ConfigError, nearest

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


@cache
def parse_path(path: str, key: str) -> tuple[str | int, ...]:
    """The names and indexes of a path. key: that of the setting, for the ConfigError about a bad path."""
    text = path[1:] if path.startswith("$") else "." + path
    steps = [step[1] if step[1] is not None else int(step[2]) for step in _STEP.finditer(text)]
    if _STEP.sub("", text) or not steps or isinstance(steps[0], int):
        raise ConfigError(f"{key} is {path!r}, expected a path such as $.data.turns or $.files[0]")
    return tuple(steps)


def check_fields_map(fields: Mapping[str, Any], columns: Collection[str]) -> None:
    """ConfigError for a map of fields with a value that is no path, nor a list of paths, or a name not in `columns`."""
    for name, paths in fields.items():
        if name not in columns:
            raise ConfigError(f"fields.{name}: no such column in the form of the source{nearest(name, columns)}")
        for path in paths if isinstance(paths, list | tuple) else [paths]:
            if not isinstance(path, str):
                raise ConfigError(f"fields.{name} is {path!r}, expected a path such as $.data.turns, or a list of such")
            parse_path(path, f"fields.{name}")


def columns_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns in which the paths begin."""
    return tuple(
        str(parse_path(path, f"fields.{name}")[0]) for name, paths in fields.items() for path in _listed(paths)
    )


def pick_fields(raw: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the columns of the map, the columns that no path begins in, and what is left of the others.

    What is left has the name of its place, such as `data.image` beside the path $.data.turns; `$.images` is the column
    of the record in whose place the map puts another.
    """
    begun = columns_of(fields)
    picked = {name: _picked(raw, paths, name) for name, paths in fields.items()}
    others = {name: value for name, value in raw.items() if name not in begun and name not in fields}
    left = {f"$.{name}": raw[name] for name in fields if name in raw and name not in begun}
    for column in dict.fromkeys(name for name in begun if name in raw):
        steps = [parse_path(path, f"fields.{name}") for name, listed in fields.items() for path in _listed(listed)]
        left |= dict(_left(raw[column], column, [path for path in steps if path[0] == column], 1))
    return {**others, **left, **{name: value for name, value in picked.items() if value is not None}}


def value_at(raw: Mapping[str, Any], path: str) -> Any:
    """The value of a column; or at a path, which begins with $. None where there is none."""
    return _value(raw, parse_path(path, "eval_by")) if path.startswith("$") else raw.get(path)


def column_of(path: str) -> str:
    """The column in which such a path begins."""
    return str(parse_path(path, "eval_by")[0]) if path.startswith("$") else path


def original_place(place: str, fields: Mapping[str, Any]) -> str:
    """The place in the record as it was, for a place in the picked record."""
    column = re.match(r"\w*", place)
    path = fields.get(column[0]) if column else None
    return path.removeprefix("$.") + place[len(column[0]) :] if column and isinstance(path, str) else place


def _listed(paths: Any) -> Sequence[str]:
    return paths if isinstance(paths, list | tuple) else [paths]


def _left(value: Any, place: str, paths: Sequence[tuple[str | int, ...]], depth: int) -> Iterator[tuple[str, Any]]:
    """(place, value) of what no path takes. paths: those that go on from the value, at their step number `depth`."""
    if value is None or any(len(path) == depth for path in paths):
        return
    if not paths or not isinstance(value, Mapping | list):
        yield place, value
        return
    is_list = isinstance(value, list)
    for step, item in enumerate(value) if isinstance(value, list) else value.items():
        further = [path for path in paths if path[depth] == step]
        yield from _left(item, f"{place}[{step}]" if is_list else f"{place}.{step}", further, depth + 1)


def _picked(raw: Mapping[str, Any], paths: Any, name: str) -> Any:
    if not isinstance(paths, list | tuple):
        return _value(raw, parse_path(paths, f"fields.{name}"))
    return [value for path in paths if (value := _value(raw, parse_path(path, f"fields.{name}"))) is not None]


def _value(value: Any, steps: tuple[str | int, ...]) -> Any:
    for step in steps:
        if isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value
