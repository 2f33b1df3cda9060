"""Alpaca: {instruction, input, output, system, history: [[question, answer], ...]}, as LLaMA-Factory reads it.

The question is the instruction and the input, joined by a line feed; the answers of the history are learned too.
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.absent import is_absent
from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import (
    MEDIA_COLUMNS,
    check_counts,
    media,
    missing,
    system_turn,
    with_places,
)
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject

_READ = ("instruction", "input", "output", "system", "history", *MEDIA_COLUMNS)


def history_turns(history: Any) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Messages of [[question, answer], ...], and their places. Raises Reject."""
    if isinstance(history, str) and not is_absent(history):
        history = parse_json(history, "history")
    if is_absent(history):
        return [], ()
    if not isinstance(history, list):
        raise Reject("messages_not_list", f"`history` is {kind_of(history)}, expected a list", "history")
    messages: list[dict[str, Any]] = []
    places: list[str] = []
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise Reject("message_not_object", f"{kind_of(pair)}, expected [question, answer]", f"history[{i}]")
        messages += [{"role": role, "content": pair[j]} for j, role in enumerate(("user", "assistant"))]
        places += [f"history[{i}][0]", f"history[{i}][1]"]
    return messages, tuple(places)


def joined(first: Any, second: Any) -> Any:
    """Both texts, joined by a line feed; one of them where the other is empty."""
    return f"{first}\n{second}" if first and second else first or second


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("output") is None:
        raise missing(record, "`output`")
    for column in ("instruction", "input", "output"):
        if not isinstance(record.get(column), str | None):
            given = kind_of(record[column])
            raise Reject("bad_content_type", f"`{column}` is {given}, expected a string", column)
    system = system_turn(record)
    history, places = history_turns(record.get("history"))
    question = joined(record.get("instruction"), record.get("input")) or ""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]
    entries = media(record)
    messages = [*system, *history, *turns]
    if entries:
        messages = [
            {**m, "content": with_places(m["content"]) if isinstance(m["content"], str) else m["content"]}
            for m in messages
        ]
        check_counts(messages, entries)
    placed = (*["system"] * len(system), *places, "instruction", "output")
    return Normal(renamed(record, _READ, messages=messages, **entries), placed)


def _fits(record: Mapping[str, Any]) -> bool:
    has_answer = "output" in record or "chosen" in record
    return "instruction" in record and has_answer and not any(name in record for name in ("messages", "conversations"))


FORM = Form(_READ, _fits, _read)
