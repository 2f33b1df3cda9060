"""The setting `filter`: an SQL expression on the columns of a record. polars evaluates it, a chunk at a time.

A record is decided by its columns alone, so the same records are taken wherever a chunk ends. A column that a record
lacks is null there, and a filter that is null leaves the record out, as in SQL.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from lmms.configs.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

LEFT_OUT = object()
"""The value of a record that a filter leaves out."""

_OVER_ROWS = {"Agg", "Over", "Len", "SubQuery", "Quantile", "Rank", "Shift", "Correlation", "NullCount"}
"""What polars calls a part of an expression that looks at more than one row."""
_NAMES = {"Column", "Literal"}
_DECIMAL = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|(?<![\w.])(\d+\.\d*|\.\d+)(?![\w.])""")
"""A text, a quoted name, or (group 1) a number such as 0.5."""


@cache
def filter_columns(text: str) -> tuple[str, ...]:
    """The columns that a filter names. ConfigError for a text that is no filter of single records."""
    expression = _parsed(text)
    columns = tuple(dict.fromkeys(expression.meta.root_names()))
    if not columns:
        raise _bad(text, "it names no column")
    if _OVER_ROWS.intersection(_parts(json.loads(expression.meta.serialize(format="json")))):
        raise _bad(text, "it looks at more than one record, as avg(score) does")
    return columns


def take_filtered(
    values: Iterable[tuple[int, Any]], text: str | None, source: str
) -> tuple[Iterable[tuple[int, Any]], frozenset[str]]:
    """(row, value) of the rows of a chunk, with LEFT_OUT for a record that the filter leaves out; and columns.

    text: the filter, if any. source: its name. The columns are those of the filter that at least one record has.
    """
    if text is None:
        return values, frozenset()
    rows = list(values)
    records = [value for _, value in rows if isinstance(value, Mapping)]
    place = f"rows {rows[0][0]} to {rows[-1][0]} of {source}" if rows else source
    is_taken = iter(passes(text, records, place))
    taken = [(row, LEFT_OUT if isinstance(v, Mapping) and not next(is_taken) else v) for row, v in rows]
    return taken, frozenset(name for name in filter_columns(text) if any(name in record for record in records))


def passes(text: str, rows: Sequence[Mapping[str, Any]], place: str) -> list[bool]:
    """Whether each row passes the filter. place: what to call the rows in an error.

    ConfigError, with the columns and what they hold, if the filter cannot be evaluated.
    """
    import polars as pl

    columns = {name: [row.get(name) for row in rows] for name in filter_columns(text)}
    series = {name: _series(text, name, values, place) for name, values in columns.items()}
    kept = _evaluated(text, series, place)
    if kept.dtype not in (pl.Boolean, pl.Null):
        raise _bad(text, f"it gives values of the type {kept.dtype}, expected true or false")
    return kept.fill_null(value=False).to_list() if kept.dtype == pl.Boolean else [False] * len(rows)


def _parsed(text: str) -> "pl.Expr":
    import polars as pl

    try:
        return pl.sql_expr(_DECIMAL.sub(_as_float, text))
    except pl.exceptions.PolarsError as error:
        raise _bad(text, _first_line(error)) from error


def _as_float(match: re.Match[str]) -> str:
    """A number such as 0.5 as 0.5e0: polars would compare the decimal 0.5 with a text as two texts, "10" below "9"."""
    number = match[1]
    return match[0] if number is None else f"0{number}0e0"


def _series(text: str, name: str, values: list[Any], place: str) -> "pl.Series":
    import polars as pl

    if any(type(value) is float for value in values):
        values = [float(value) if type(value) is int else value for value in values]
    try:
        return pl.Series(name, values)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        kinds = ", ".join(sorted({type(value).__name__ for value in values if value is not None}))
        raise ConfigError(f"filter {text!r}: column {name} holds {kinds} in {place}, expected one type") from error


def _evaluated(text: str, series: Mapping[str, "pl.Series"], place: str) -> "pl.Series":
    """The value of the filter for each row. A column without values may stand for one of any type."""
    import polars as pl

    errors = []
    for empty in (pl.Null(), pl.String(), pl.List(pl.String())):
        typed = [values.cast(empty) if values.dtype == pl.Null else values for values in series.values()]
        try:
            return pl.DataFrame(typed).select(_parsed(text).alias("passes"))["passes"]
        except pl.exceptions.PolarsError as error:
            errors.append(error)
    kinds = ", ".join(f"{name} is {values.dtype}" for name, values in series.items())
    advice = "; TRY_CAST(column AS DOUBLE) makes numbers of texts" if "String" in kinds else ""
    raise ConfigError(
        f"filter {text!r} cannot be evaluated on {place}, where {kinds}: {_first_line(errors[0])}{advice}"
    ) from errors[0]


def _parts(tree: Any) -> Iterator[str]:
    """Every name in polars' JSON of an expression, but for names of columns and texts of the user."""
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            yield name
            if name not in _NAMES:
                yield from _parts(below)
    elif isinstance(tree, list):
        for item in tree:
            yield from _parts(item)
    elif isinstance(tree, str):
        yield tree


def _bad(text: str, fault: str) -> ConfigError:
    example = "score > 0.5 AND lang = 'en'"
    return ConfigError(f"filter {text!r}: {fault}; expected an SQL expression on columns, such as {example}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
