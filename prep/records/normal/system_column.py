"""A system prompt in a column beside the turns, for every form that leaves the column in its record."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmms.prep.records.absent import is_blank
from lmms.prep.records.normal.form import Normal, Roles, renamed
from lmms.prep.records.normal.turns import listed

SYSTEM_COLUMNS = ("system", "system_prompt")


def with_system_column(normal: Normal, roles: Roles) -> Normal:
    """The conversation with the text of `system`, or else of `system_prompt`, as its first turn.

    A system turn at the start counts more than a column, which then stays and is noted as not used. Raises Reject.
    """
    column = next((name for name in SYSTEM_COLUMNS if not is_blank(normal.record.get(name))), None)
    if column is None or normal.document or normal.record.get("messages") is None:
        return normal
    turns = listed(normal.record, "messages")
    if is_system(turns[0], roles):
        return normal
    places = normal.places or tuple(f"messages[{i}]" for i in range(len(turns)))
    messages = [{"role": "system", "content": normal.record[column]}, *turns]
    return replace(
        normal,
        record=renamed(normal.record, (column,), messages=messages),
        places=(column, *places),
        has_same_parts=normal.has_same_parts or not normal.places,
    )


def is_system(turn: Any, roles: Roles) -> bool:
    """Whether a turn has the role of a system prompt, by its name or by the user's setting."""
    role = turn.get("role") if isinstance(turn, Mapping) else None
    return isinstance(role, str) and roles.get(role, role) == "system"
