"""ShareGPT: {conversations: [{from, value}], system, tools}, as LLaMA-Factory and ms-swift read it.

    human, user -> user         gpt, assistant, bot -> assistant     function_call, tool_call -> calls as JSON
    system -> system            observation, tool, tool_response, function_response -> result of a tool

The keys may be role and content, and a turn may be a pair: {human: question, assistant: answer}. A system turn at the
start counts, and the column `system` where there is none.
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.system_column import is_system
from lmms.prep.records.normal.turns import (
    CALLS,
    ROLES,
    calls_of,
    listed,
    missing,
    peeked,
    system_turn,
)
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

LISTS = ("conversations", "conversation", "messages")
_PAIRS = (("human", "user"), ("user", "user"), ("assistant", "assistant"), ("gpt", "assistant"), ("bot", "assistant"))


def column_of(record: Mapping[str, Any]) -> str:
    """The column that holds the turns. Raises Reject."""
    column = next((name for name in LISTS if record.get(name) is not None), None)
    if column is None:
        raise missing(record, "`conversations`")
    return column


def _read_turns(turns: list[Any], column: str, roles: Roles) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Messages, and the place of each in the record. Raises Reject."""
    placed = [pair for i, turn in enumerate(turns) for pair in _messages(turn, f"{column}[{i}]", roles)]
    return [message for message, _ in placed], tuple(place for _, place in placed)


def _messages(turn: Any, place: str, roles: Roles) -> list[tuple[dict[str, Any], str]]:
    if not isinstance(turn, Mapping):
        raise Reject("message_not_object", f"a turn is {kind_of(turn)}, expected an object", place)
    set_keys = {key: value for key, value in turn.items() if value is not None}
    if "from" not in set_keys and "role" not in set_keys:
        pair = [(role, key) for key, role in _PAIRS if key in set_keys]
        if len(pair) != 2 or len(set_keys) != 2:
            raise Reject("missing_role", f"no `from`; found the keys {', '.join(map(str, set_keys)) or 'none'}", place)
        return [({"role": role, "content": set_keys[key]}, f"{place}.{key}") for role, key in pair]
    role_key, text_key = _key(turn, "from", "role"), _key(turn, "value", "content")
    role, text = turn.get(role_key), turn.get(text_key)
    others = {key: value for key, value in set_keys.items() if key not in (role_key, text_key)}
    place = f"{place}.{text_key}"
    if role in CALLS and role not in roles:
        return [({**others, **calls_of(text, place)}, place)]
    if text is None and not others.get("tool_calls"):
        raise Reject("missing_content", f"no `{text_key}`", place)
    known = role if not isinstance(role, str) or role in roles else ROLES.get(role, role)
    return [({**others, "role": known, "content": text}, place)]


def _key(turn: Mapping[str, Any], name: str, other: str) -> str:
    return other if turn.get(name) is None and turn.get(other) is not None else name


def read_conversation(record: Mapping[str, Any], roles: Roles) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Messages with the system prompt, and the place of each; a system turn at the start leaves out the column."""
    column = column_of(record)
    messages, places = _read_turns(listed(record, column), column, roles)
    if is_system(messages[0], roles):
        return messages, places
    system = system_turn(record)
    return [*system, *messages], (*["system"] * len(system), *places)


def _read(record: Mapping[str, Any], roles: Roles) -> Normal:
    messages, places = read_conversation(record, roles)
    return Normal(renamed(record, (*LISTS, *system_used(places)), messages=messages), places)


def system_used(places: tuple[str, ...]) -> tuple[str, ...]:
    """The column `system` if the first turn is made of the column."""
    return ("system",) if places[0] == "system" else ()


def has_conversation(record: Mapping[str, Any]) -> bool:
    """Whether a record has turns of this form."""
    if record.get("messages") is not None:
        return any(isinstance(turn, Mapping) and turn.get("from") is not None for turn in peeked(record, "messages"))
    return any(isinstance(turn, Mapping) for name in LISTS for turn in peeked(record, name))


FORM = Form(LISTS, has_conversation, _read)
