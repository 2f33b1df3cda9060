"""A conversation that is too long for a pack, without its last turns: whole exchanges, with their answers."""

from collections.abc import Sequence
from dataclasses import replace

from lmms.prep.records.record import Message, Record


def possible_ends(messages: Sequence[Message]) -> list[int]:
    """The numbers of messages that a shorter conversation may keep: it ends with an answer that calls no tool."""
    return [i + 1 for i, m in enumerate(messages[:-1]) if m.role == "assistant" and not m.calls]


def first_messages(record: Record, number: int) -> Record:
    """The record with its first messages only."""
    return replace(record, messages=record.messages[:number])
