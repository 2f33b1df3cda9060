"""The reasoning of a turn: every key and part that can hold it, and what a build does with it."""

from dataclasses import replace
from typing import Any

import pytest

from lmms.configs.settings.sources import DEFAULT_READING
from lmms.prep.records.reasoning import think_blocks, without_think_blocks
from lmms.prep.records.record import Message, parse_record
from lmms.prep.reject import Reject

FOUR = ({"type": "text", "text": "4"},)


def answer(**message: Any) -> Message:
    user = {"role": "user", "content": "2+2?"}
    return parse_record({"messages": [user, {"role": "assistant", "content": "4", **message}]}).messages[1]


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": "so"},
        {"reasoning": "so"},
        {"thinking": "so"},
        {"reasoning": "so", "reasoning_content": "so", "thinking": None},
        {"content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "4"}]},
        {
            "content": [
                {"type": "reasoning", "text": "s"},
                {"type": "thinking", "thinking": "o"},
                {"type": "text", "text": "4"},
            ]
        },
    ],
)
def test_every_form_of_reasoning_is_read_apart_from_the_answer(message: dict[str, Any]) -> None:
    parsed = answer(**message)
    assert (parsed.reasoning, parsed.text) == ("so", "4")


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning": {"summary": []}},
        {"reasoning": "a", "thinking": "b"},
        {"content": [{"type": "text", "text": "4"}, {"type": "thinking", "thinking": "so"}]},
        {"content": [{"type": "thinking"}, {"type": "text", "text": "4"}]},
    ],
)
def test_reasoning_without_one_clear_text_or_place_is_a_rejection(message: dict[str, Any]) -> None:
    with pytest.raises(Reject) as caught:
        answer(**message)
    assert (caught.value.reason, caught.value.place) == ("bad_reasoning", "messages[1]")


def test_stripped_reasoning_leaves_the_answer_alone() -> None:
    messages = [
        {"role": "user", "content": "<think>mine</think> 2+2?"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\n4"},
        {"role": "user", "content": "3+3?"},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>so</think>6"}], "reasoning": "so"},
    ]
    record = parse_record({"messages": messages}, replace(DEFAULT_READING, reasoning="stripped"))
    assert [m.text for m in record.messages] == ["<think>mine</think> 2+2?", "4", "3+3?", "6"]
    assert [m.reasoning for m in record.messages] == [None] * 4


def test_think_blocks_end_behind_their_white_space() -> None:
    text = "a<think>b</think>\n\nc<think>\n</think>d</think>"
    assert [text[start:end] for start, end in think_blocks(text)] == ["<think>b</think>\n\n", "<think>\n</think>"]
    assert without_think_blocks(text) == "acd</think>"


def test_stripped_think_blocks_may_span_parts_and_must_end() -> None:
    reading = replace(DEFAULT_READING, reasoning="stripped")
    user = {"role": "user", "content": "2+2?"}
    parts = [{"type": "text", "text": text} for text in ("<think>so", " it</think>4", "!")]
    record = parse_record({"messages": [user, {"role": "assistant", "content": parts}]}, reading)
    assert record.messages[1].text == "4!"
    with pytest.raises(Reject, match="does not end") as caught:
        parse_record({"messages": [user, {"role": "assistant", "content": "<think>so"}]}, reading)
    assert caught.value.reason == "bad_reasoning"
