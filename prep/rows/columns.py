"""Columns of a table: names that stand twice, and nulls.

A table writes nulls: every row has every key of a struct, also keys that only other rows use.
In a message or a part such a key is absent already, see prep/records. Inside tools and calls a null would be rendered,
so the key is taken out; a JSON null that a user means there needs a column of JSON text.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

TWICE = "two columns have the name"
"""How the message of check_names begins: the file is sound."""

_TOOL_COLUMNS = ("tools", "functions")
_TURN_COLUMNS = ("messages", "prompt", "completion")
_CALL_KEYS = ("tool_calls", "function_call")


def without_struct_nulls(row: Any) -> Any:
    """The row of a table without null keys in its tools and in its calls."""
    if not isinstance(row, Mapping):
        return row
    tools = {column: _pruned(row[column]) for column in _TOOL_COLUMNS if row.get(column) is not None}
    turns = {
        column: [_turn(turn) for turn in row[column]] for column in _TURN_COLUMNS if isinstance(row.get(column), list)
    }
    return {**row, **tools, **turns}


def _turn(turn: Any) -> Any:
    if not isinstance(turn, Mapping):
        return turn
    return {**turn, **{key: _pruned(turn[key]) for key in _CALL_KEYS if turn.get(key) is not None}}


def _pruned(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _pruned(item) for key, item in value.items() if item is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value


def check_names(names: Sequence[str], columns: Collection[str]) -> None:
    """OSError if two columns have one name that is read. columns: the names that are read."""
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise OSError(f"{TWICE} {twice[0]}, which is read; rename one of them")
