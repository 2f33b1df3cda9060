"""The quick way to read plain records: the same record as the walk with a name for every fault, or none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.settings.sources import DEFAULT_READING, Reading
from lmms.prep.records.plain import parse_plain
from lmms.prep.records.record import Record, parse_record
from lmms.prep.reject import Reject

PLAIN = {"id": 1, "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "meta": "x"}

READINGS = (
    DEFAULT_READING,
    replace(DEFAULT_READING, targets="last", template_options={"enable_thinking": False}),
    replace(DEFAULT_READING, targets="all", roles={"human": "user", "system": "tool"}),
    replace(DEFAULT_READING, reasoning="masked"),
    replace(DEFAULT_READING, reasoning="stripped"),
)

values = st.sampled_from(
    [None, "", "text", "<think>a</think>b", 0, 1, True, [], {}, [None], ["a.jpg"], [{"type": "text"}]]
)
calls = st.sampled_from(
    [
        [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        [{"function": {"name": "f", "arguments": {"a": 1}}}, {"name": "g"}],
        [{"function": {"name": "f", "arguments": "no JSON"}}],
        "[]",
        [],
        None,
    ]
)
tools = st.sampled_from(
    [[{"name": "f"}], [{"type": "function", "function": {"name": "f"}}], '[{"name": "f"}]', [{}], [], None]
)
keys = st.sampled_from(
    ["role", "content", "reasoning_content", "reasoning", "weight", "loss", "name", "tool_calls", "image", "x", "audio"]
)
roles = st.sampled_from(["user", "assistant", "system", "tool", "human", None, 3])
parts = st.one_of(
    st.sampled_from(
        [
            {"type": "text", "text": "Q"},
            {"type": "text", "text": "", "image": None},
            {"type": "image", "image": "a.jpg"},
            {"type": "image", "image": b"picture", "text": None},
            {"type": "image", "image": {"bytes": b"picture", "path": None}},
            {"type": "image", "image": {"bytes": None, "path": None}},
            {"type": "image_url", "image_url": {"url": "a.jpg", "detail": "high"}},
            {"type": "image_url", "image_url": "a.jpg"},
            {"type": "image"},
            {"type": "image", "url": "a.jpg"},
            {"type": "image", "image": "a.jpg", "max_pixels": 9},
            {"type": "image", "text": "a.jpg"},
            {"type": "thinking", "thinking": "T"},
            {"type": "video", "video": "a.mp4"},
        ]
    ),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image", "image_url", "video", None, 3])},
        optional={key: st.deferred(lambda: values) for key in ("text", "image", "image_url", "url", "min_pixels")},
    ),
    st.deferred(lambda: values),
)
turns = st.one_of(
    st.fixed_dictionaries({"role": st.deferred(lambda: roles), "content": st.lists(parts, max_size=3)}),
    st.fixed_dictionaries({"role": roles, "content": st.one_of(st.just("text"), values)}),
    st.dictionaries(keys, values),
    st.fixed_dictionaries({"role": roles, "content": st.just("a"), "reasoning_content": values}),
    st.fixed_dictionaries(
        {"role": roles, "tool_calls": calls}, optional={"content": values, "tool_call_id": values, "name": values}
    ),
    values,
)
columns = st.one_of(
    st.fixed_dictionaries({"images": st.lists(st.sampled_from(["a.jpg", None, {"path": "a.jpg"}, 3]), max_size=3)}),
    st.fixed_dictionaries({"tools": tools}),
    st.dictionaries(
        st.sampled_from(
            ["id", "images", "image", "videos", "tools", "weight", "note", "chat_template_kwargs", "a.jpg"]
        ),
        values,
    ),
)
records = st.builds(
    lambda messages, others: {**others, "messages": messages}, st.one_of(st.lists(turns, max_size=4), values), columns
)


def asked(part: dict[str, Any], role: str = "user", **others: Any) -> dict[str, Any]:
    """A record with this part in its first turn."""
    turn = {"role": role, "content": [part, {"type": "text", "text": "Q"}]}
    return {**others, "messages": [turn, {"role": "assistant", "content": "A"}]}


def walked(raw: Any, reading: Reading) -> Record | None:
    try:
        return parse_record(raw, reading)
    except Reject:
        return None


@settings(max_examples=1000, deadline=None)
@given(records, st.sampled_from(READINGS))
def test_any_record_is_the_same_by_both_ways(raw: dict[str, Any], reading: Reading) -> None:
    assert parse_plain(raw, reading) in (None, walked(raw, reading))


def test_a_record_with_tools_takes_the_quick_way() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "R"},
        {"role": "tool", "content": "1", "tool_call_id": "1", "name": "f"},
        {"role": "assistant", "content": "A"},
    ]
    raw = {"messages": turns, "tools": [{"name": "f"}]}
    assert parse_plain(raw, DEFAULT_READING) == parse_record(raw, DEFAULT_READING)


@pytest.mark.parametrize(
    ("part", "others"),
    [
        ({"type": "image", "image": "a.jpg"}, {}),
        ({"type": "image_url", "image_url": {"url": "a.jpg"}}, {}),
        ({"type": "image"}, {"images": ["a.jpg"]}),
        ({"type": "image", "image": None, "text": None}, {"images": [{"bytes": b"picture", "path": None}]}),
    ],
)
def test_a_record_with_a_picture_takes_the_quick_way(part: dict[str, Any], others: dict[str, Any]) -> None:
    raw = asked(part, **others)
    assert parse_plain(raw, DEFAULT_READING) == parse_record(raw, DEFAULT_READING)


@pytest.mark.parametrize("reading", READINGS[:4])
def test_a_plain_record_takes_the_quick_way(reading: Reading) -> None:
    quick = parse_plain(PLAIN, reading)
    assert quick == parse_record(PLAIN, reading)
    assert quick is not None
    assert quick.unused == ("column meta",)


@pytest.mark.parametrize(
    ("change", "reading"),
    [
        ({"images": ["a.jpg"]}, DEFAULT_READING),
        ({"image": "a.jpg"}, DEFAULT_READING),
        (asked({"type": "image", "text": "lost"}, images=["a.jpg"]), DEFAULT_READING),
        (asked({"type": "image", "image": "a.jpg", "url": "lost"}), DEFAULT_READING),
        (asked({"type": "image"}, images=["a.jpg", "lost"]), DEFAULT_READING),
        (asked({"type": "image", "image": "a.jpg", "max_pixels": 9999}), DEFAULT_READING),
        (asked({"type": "image", "image": "a.jpg"}, role="assistant"), DEFAULT_READING),
        ({"weight": 2}, DEFAULT_READING),
        ({"Photo_Path": "a.jpg"}, DEFAULT_READING),
        ({"messages": [{"role": "user", "content": "Q"}]}, DEFAULT_READING),
        ({"messages": []}, READINGS[2]),
        ({"messages": [*PLAIN["messages"], {"role": "assistant", "content": "A", "weight": 0}]}, DEFAULT_READING),  # type: ignore[misc]
        ({}, READINGS[4]),
    ],
)
def test_what_is_not_plain_is_left_to_the_walk(change: dict[str, Any], reading: Reading) -> None:
    assert parse_plain(PLAIN | change, reading) is None


@pytest.mark.parametrize(("files", "step", "least"), [("text/*", 41, 1400), ("image/*/records*", 1, 1600)])
def test_real_records_are_the_same_by_both_ways(shared: Path, files: str, step: int, least: int) -> None:
    quick = 0
    for file in sorted((shared / "data").glob(f"{files}.jsonl.zst")):
        with pa.CompressedInputStream(pa.OSFile(str(file)), "zstd") as stream:
            lines = stream.read().rstrip(b"\n").split(b"\n")
        for line in lines[::step]:
            raw = json.loads(line)
            record = parse_plain(raw, DEFAULT_READING)
            quick += record is not None
            assert record in (None, walked(raw, DEFAULT_READING))
    assert quick > least
