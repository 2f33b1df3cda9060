"""Several records of one picture as one conversation: what they have in common, and what becomes of them."""

import json
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import chain

from lmms.prep.records.parts import Part, Text
from lmms.prep.records.record import Message, Record
from lmms.prep.records.shapes import Shape


def kinship(record: Record) -> Hashable | None:
    """What two records have in common that can be joined: question, system prompt, weights, options.

    None for a record that is joined with no other: one with tools, calls, reasoning or several questions, or with
    another number of pictures than one.
    """
    turns = record.messages
    roles = [turn.role for turn in turns]
    has_more = record.tools or any(turn.calls or turn.reasoning for turn in turns)
    if roles[-2:] != ["user", "assistant"] or roles[:-2] not in ([], ["system"]) or has_more:
        return None
    if len(record.media) != 1 or len(turns[-2].images) != 1:
        return None
    said = tuple((turn.role, turn.text, turn.weight) for turn in turns[:-1])
    options = json.dumps(dict(record.template_options), sort_keys=True, default=str)
    return (said, turns[-1].weight, record.weight, options, record.reasoning)


def joined(records: Sequence[Record], label: str) -> Record:
    """One conversation of records with one kinship: their pictures, then the question; and one JSON with all answers.

    label: key of an answer, with {n} for the number of its picture. An answer that is a JSON list or object stands as
    it is, any other as a JSON string.
    """
    *system, question, answer = records[0].messages
    pictures: list[Part] = list(chain.from_iterable(record.messages[-2].images for record in records))
    text = [Text(question.text)] if question.text else []
    return replace(
        records[0],
        messages=(
            *system,
            replace(question, content=(*pictures, *text)),
            replace(answer, content=tuple(_answers(records, label))),
        ),
        unused=tuple(chain.from_iterable(record.unused for record in records)),
    )


def _answers(records: Sequence[Record], label: str) -> list[Part]:
    """Texts and shapes whose sequence is the JSON of all answers; a shape names its picture in the joined turn."""
    parts: list[Part] = []
    for number, record in enumerate(records):
        key = json.dumps(label.replace("{n}", str(number + 1)), ensure_ascii=False)
        parts.append(Text(f"{', ' if number else '{'}{key}: "))
        parts += _value(record.messages[-1], number)
    return [*parts, Text("}")]


def _value(answer: Message, number: int) -> list[Part]:
    """The JSON of an answer. A shape becomes numbers, which need no escape within a JSON string."""
    given: Sequence[Part] = (Text(answer.content),) if isinstance(answer.content, str) else answer.content
    parts = [replace(part, image=number) if isinstance(part, Shape) else part for part in given]
    if _is_json("".join(part.text if isinstance(part, Text) else "0" for part in parts)):
        return parts
    escaped = [Text(json.dumps(p.text, ensure_ascii=False)[1:-1]) if isinstance(p, Text) else p for p in parts]
    return [Text('"'), *escaped, Text('"')]


def _is_json(text: str) -> bool:
    """Whether a text is a JSON list or object."""
    try:
        return isinstance(json.loads(text), list | dict)
    except ValueError:
        return False
