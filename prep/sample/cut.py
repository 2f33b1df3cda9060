"""A conversation that is too long for a pack, without its last turns: whole exchanges, with their answers."""

from dataclasses import replace

from lmms.prep.records.record import Record


def learned_ends(record: Record) -> list[int]:
    """Numbers of messages that a shorter conversation may keep, in rising order.

    A shorter conversation ends with an answer that calls no tool, and has a turn to learn from.
    """
    messages = record.messages
    first = next((i for i, message in enumerate(messages) if message.weight), len(messages))
    answers = (i for i, message in enumerate(messages[:-1]) if message.role == "assistant" and not message.calls)
    return [i + 1 for i in answers if i >= first]


def first_messages(record: Record, number: int) -> Record:
    """The record with its first messages only."""
    return replace(record, messages=record.messages[:number])
