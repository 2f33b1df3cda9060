"""Tools, calls and results of a record: every form of them gives one typed value."""

import json
from typing import Any

import pytest

from lmms.prep.records.record import parse_record
from lmms.prep.records.tools import ToolCall
from lmms.prep.reject import Reject

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def conversation(call: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", **call},
            {"role": "tool", "content": "no", "tool_call_id": "c1", "name": "weather"},
            {"role": "assistant", "content": "No."},
        ],
        **columns,
    }


def calls(**call: Any) -> tuple[ToolCall, ...]:
    return parse_record(conversation(call)).messages[1].calls


@pytest.mark.parametrize(
    "tools",
    [
        [WEATHER],
        [WEATHER["function"]],
        json.dumps([WEATHER]),
        [json.dumps(WEATHER)],
        json.dumps([WEATHER["function"]]),
    ],
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_every_form_of_a_tool_is_the_function_form(tools: Any, column: str) -> None:
    record = parse_record(conversation({"content": "hm"}, **{column: tools}))
    assert record.tools == (WEATHER,)
    assert record.unused == ()


@pytest.mark.parametrize("tools", [None, [], {}, "", "[]", "{}", "null"])
def test_an_empty_column_says_that_there_are_no_tools(tools: Any) -> None:
    assert parse_record(conversation({"content": "hm"}, tools=tools)).tools == ()


def test_every_form_of_a_call_gives_its_arguments_as_an_object() -> None:
    arguments = {"place": "Köln", "days": [1, 2], "unit": None}
    expected = (ToolCall("weather", arguments, "c1"),)
    function = {"name": "weather", "arguments": arguments}
    text = {"name": "weather", "arguments": json.dumps(arguments)}
    assert calls(content=None, tool_calls=[{"id": "c1", "type": "function", "function": function}]) == expected
    assert calls(tool_calls=[{"id": "c1", "type": "function", "function": text}]) == expected
    assert calls(content="", tool_calls=[{"id": "c1", **text}]) == expected
    assert calls(tool_calls=json.dumps([{"id": "c1", "function": text}])) == expected
    assert calls(function_call=text) == (ToolCall("weather", arguments, None),)
    assert calls(function_call={"name": "weather"}) == (ToolCall("weather", {}, None),)


def test_calls_without_content_are_a_turn_with_empty_text() -> None:
    record = parse_record(
        conversation({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]})
    )
    assert [message.content for message in record.messages] == ["Rain?", "", "no", "No."]
    assert (record.messages[2].name, record.messages[2].call_id) == ("weather", "c1")
    assert [message.weight for message in record.messages] == [0, 1, 0, 1]


@pytest.mark.parametrize("arguments", ["", "not json", "[1]", "3", [1], 3, '{"a": 1, "a": 2}'])
def test_arguments_that_are_no_object_are_rejected(arguments: Any) -> None:
    with pytest.raises(Reject) as caught:
        calls(tool_calls=[{"function": {"name": "f", "arguments": arguments}}])
    assert (caught.value.reason, caught.value.place) == ("bad_tool_arguments", "messages[1].tool_calls[0]")


def test_both_kinds_of_call_in_one_turn_are_rejected() -> None:
    with pytest.raises(Reject, match="both set"):
        calls(function_call={"name": "f"}, tool_calls=[{"function": {"name": "f"}}])
