"""Turns of a record with other text."""

from collections.abc import Callable
from dataclasses import replace

from lmms.prep.records.parts import Text
from lmms.prep.records.record import Message, Record


def with_question(record: Record, text: str) -> Record:
    """The record with this text in its first user turn; the pictures of the turn come first, as they stand."""
    return _changed(record, _first(record, "user"), lambda turn: _with_text(turn, text))


def with_system(record: Record, text: str) -> Record:
    """The record with this text as its system turn, in place of a first turn that is one."""
    if record.messages and record.messages[0].role == "system":
        return _changed(record, 0, lambda turn: _with_text(turn, text))
    system = Message(role="system", content=text, weight=0.0, reasoning=None)
    return replace(record, messages=(system, *record.messages))


def with_answer(record: Record, text: str) -> Record:
    """The record with this text in its last assistant turn, which then has no reasoning and no calls."""
    last = max((i for i, turn in enumerate(record.messages) if turn.role == "assistant"), default=None)
    return _changed(record, last, lambda turn: replace(turn, content=text, reasoning=None, calls=()))


def _first(record: Record, role: str) -> int | None:
    return next((i for i, turn in enumerate(record.messages) if turn.role == role), None)


def _changed(record: Record, number: int | None, change: Callable[[Message], Message]) -> Record:
    if number is None:
        return record
    turns = record.messages
    return replace(record, messages=(*turns[:number], change(turns[number]), *turns[number + 1 :]))


def _with_text(turn: Message, text: str) -> Message:
    return replace(turn, content=(*turn.media, Text(text)) if turn.media else text)
