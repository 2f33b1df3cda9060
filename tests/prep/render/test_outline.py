"""Outlines of published templates: the layout of a conversation is what the template itself renders."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.errors import BuildError
from lmms.configs.settings.sources import DEFAULT_READING
from lmms.prep.records.record import Record, parse_record
from lmms.prep.records.strict_json import parse_line
from lmms.prep.reject import Reject
from lmms.prep.render import gaps as gaps_of
from lmms.prep.render import outline
from lmms.prep.render.layout import Layout, lay_out_by_template
from lmms.prep.render.outline import Outline, lay_out
from lmms.prep.render.renderer import Renderer, load_renderer
from lmms.prep.render.template import compile_template
from tests.kit.folders import DEMO_MODEL

NAMES = ("qwen2.5-text", "qwen3-text", "qwen2-vl", "qwen2.5-vl", "qwen3-vl")


def conversation(*texts: str, **columns: Any) -> Any:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return parse_record({"messages": turns, **columns})


def outcome(lay: Callable[[Renderer, Record], Layout], renderer: Renderer, record: Record) -> Layout | tuple[str, ...]:
    """The layout of a record, or why it is rejected."""
    try:
        return lay(renderer, record)
    except Reject as reject:
        return reject.reason, reject.message, reject.place


@pytest.fixture
def renderer() -> Renderer:
    """The tiny model's, whose template prints texts as they are."""
    return replace(load_renderer(read_model_folder(DEMO_MODEL)), outlines={})


def test_a_shape_gets_an_outline_when_it_comes_again(renderer: Renderer) -> None:
    layouts = [lay_out(renderer, conversation(f"Say {i}", f"It is {i}")) for i in range(3)]
    assert [type(each) for each in renderer.outlines.values()] == [Outline]  # type: ignore[union-attr]
    assert layouts == [lay_out_by_template(renderer, conversation(f"Say {i}", f"It is {i}")) for i in range(3)]


@pytest.mark.parametrize(
    "text", [" ", "\n\n", "", "<think>\nb\n</think>\na", "<tool_response>a</tool_response>", "<|im_end|>"]
)
def test_a_text_that_a_template_may_change_is_rendered_by_the_template(renderer: Renderer, text: str) -> None:
    for _ in range(3):
        assert lay_out(renderer, conversation(text, "b")) == lay_out_by_template(renderer, conversation(text, "b"))
    shapes = renderer.outlines or {}
    assert all(isinstance(each, Outline) for each in shapes.values()) if text == "" else not shapes


@pytest.mark.parametrize(("before", "behind"), [(" ", ""), ("", "\n\n"), ("\r\n", "\u3000"), ("\x1c", "\u2028 ")])
def test_white_space_at_the_ends_of_a_text_is_part_of_the_shape(renderer: Renderer, before: str, behind: str) -> None:
    """A template that cuts it off does so in the outline too."""
    trimming = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    for each in (renderer, replace(renderer, template=compile_template(trimming), outlines={}, gaps={})):
        for i in range(3):
            spaced, bare = conversation(f"{before}Say {i}{behind}", "It is"), conversation(f"Say {i}", "It is")
            assert lay_out(each, spaced) == lay_out_by_template(each, spaced)
            assert lay_out(each, bare) == lay_out_by_template(each, bare)
        assert [type(outline) for outline in (each.outlines or {}).values()] == [Outline, Outline]


def test_an_outline_that_differs_from_the_template_stops_the_build(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(renderer, conversation("a", "b"))
    lay_out(renderer, conversation("a", "b"))
    monkeypatch.setattr(outline, "_filled", lambda outline, texts: Layout(["x"], [], dropped_text=False))
    assert lay_out(renderer, conversation("a", "b")).pieces == ["x"]
    with pytest.raises(BuildError, match=r"differs from what the chat template renders; set fast=false"):
        lay_out(renderer, conversation("a" * 210, "b"))


def test_the_shapes_kept_are_bounded(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outline, "_MOST_SHAPES", 3)
    for turns in range(1, 9):
        lay_out(renderer, conversation(*(["a"] * 2 * turns)))
    assert len(renderer.outlines or ()) <= 3


@pytest.mark.parametrize("name", NAMES)
def test_layouts_of_real_records_are_those_of_the_template(
    name: str, shared: Path, model_folders: dict[str, Path]
) -> None:
    renderer = load_renderer(read_model_folder(model_folders[name]), fast=True, is_large=False)
    assert renderer.outlines is not None
    reading = replace(DEFAULT_READING, reasoning="optional")
    equal = 0
    for file in sorted((shared / "data/text").glob("*.jsonl.zst")):
        with pa.CompressedInputStream(pa.OSFile(str(file)), "zstd") as stream:
            lines = stream.read().rstrip(b"\n").split(b"\n")
        for line in lines[::61]:
            try:
                record = parse_record(parse_line(line), reading)
            except Reject:
                continue
            assert outcome(lay_out, renderer, record) == outcome(lay_out_by_template, renderer, record)
            equal += 1
    assert equal > 300
    assert sum(isinstance(each, Outline) for each in renderer.outlines.values()) > 3


TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("f", "g", "h")]


def tool_chat(order: str) -> Any:
    """A conversation with a turn for each letter: user, assistant, call, two calls, result; a number: of tools."""
    call = {"function": {"name": "f", "arguments": {"x": len(order)}}}
    turns = {
        "u": {"role": "user", "content": f"Say {order}"},
        "a": {"role": "assistant", "content": f"It is {order}"},
        "c": {"role": "assistant", "content": "", "tool_calls": [call]},
        "d": {"role": "assistant", "content": "Two", "tool_calls": [call, call]},
        "r": {"role": "tool", "content": f"result {order}"},
        "s": {"role": "system", "content": "Be brief"},
    }
    return parse_record({"messages": [turns[letter] for letter in order[1:]], "tools": TOOLS[: int(order[0])]})


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_new_shape_of_known_neighbours_needs_no_run_of_the_template(
    name: str, model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = load_renderer(read_model_folder(model_folders[name]), fast=True, is_large=False)
    for order in ("3sucrucrua", "3sucrudrrua", "3sudrrucrua"):
        lay_out(renderer, tool_chat(order))
    new = [tool_chat(order) for order in ("3sucrucrudrrua", "3sudrrucrucrua")]
    expected = [lay_out_by_template(renderer, record) for record in new]
    monkeypatch.setattr(outline, "lay_out_by_template", None)
    monkeypatch.setattr(outline, "_CHECKED", 10**9)
    assert [lay_out(renderer, record) for record in new] == expected


def test_a_gap_that_two_shapes_fill_otherwise_is_not_believed() -> None:
    gaps: gaps_of.Gaps = {}
    places = gaps_of.Places([0], ["before", "behind"])
    gaps_of.learn(gaps, places, [0], ["a", "b"])
    assert gaps_of.composed(gaps, places, ["x"]) == "axb"
    gaps_of.learn(gaps, places, [0], ["a", "c"])
    assert gaps_of.composed(gaps, places, ["x"]) is None
    gaps_of.learn(gaps, places, [0], ["a", "b"])
    assert gaps_of.composed(gaps, places, ["x"]) is None
