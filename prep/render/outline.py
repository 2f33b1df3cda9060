"""What a template writes around the texts of a conversation, by the conversation's shape.

Most conversations of a data set have few shapes: roles in an order, each with one text. The template is run for a shape
once, with a mark in the place of each text; a conversation of that shape is then this outline with its texts in place.
Where other shapes have shown all that stands between its texts, the template need not run (see gaps.py).

That is right where a template prints texts as they are. The published templates that a family names do so for every
text that _is_plain, but for white space at its ends, which is part of the shape: a test holds the layouts to those of
the template on real records, and a build does so for about every two-hundredth record. Any other template, text or
shape is rendered by the template.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lmms.configs.errors import BuildError
from lmms.prep.records.parts import Image, Part, Text, Video
from lmms.prep.records.record import Record
from lmms.prep.records.tools import ToolCall
from lmms.prep.reject import Reject
from lmms.prep.render.gaps import composed, learn, places_of
from lmms.prep.render.layout import Frame, Layout, LearnedTurn, cut_rendering, frame_of, lay_out_by_template
from lmms.prep.render.renderer import Renderer
from lmms.prep.render.template import MarkedJson, to_json

_Ends: TypeAlias = tuple[str, str]
"""The white space before a text and behind."""
Shape: TypeAlias = tuple[Any, ...]
"""All of a record but its texts, which have no white space at their ends: that is in the shape."""

_CHECKED = 211
"""A record is also rendered by the template when the length of its texts is a multiple of this."""
_MOST_SHAPES = 4096
_MARK = re.compile("\ufdd0([0-9]+)\ufdd1")
_TAGS = ("think>", "tool_response>")
"""Ends of the tags that these templates look for in a text."""


@dataclass(frozen=True, slots=True)
class Outline:
    """The layout of a shape, with places for texts."""

    pieces: list[str]
    places: list[tuple[int, list[str | int]]]
    """(a piece, what it is joined of: constant text, or the number of a text of the record)."""
    learned: list[LearnedTurn]
    frame: Frame


def lay_out(renderer: Renderer, record: Record) -> Layout:
    """The text of a record. Raises Reject."""
    shaped = None if renderer.outlines is None else _shape_of(record, renderer.control_prefix)
    if renderer.outlines is None or shaped is None:
        return lay_out_by_template(renderer, record)
    shape, texts = shaped
    if shape not in renderer.outlines:
        if len(renderer.outlines) == _MOST_SHAPES:
            renderer.outlines.clear()
        renderer.outlines[shape] = _outline_of(renderer, record, shape[-1])
    outline = renderer.outlines[shape]
    if outline is None:
        return lay_out_by_template(renderer, record)
    layout = _filled(outline, texts)
    if not sum(map(len, texts)) % _CHECKED and layout != lay_out_by_template(renderer, record):
        raise BuildError(
            "the outline of a conversation differs from what the chat template renders; set fast=false, and"
            " report this: it is a bug"
        )
    return layout


def _filled(outline: Outline, texts: Sequence[str]) -> Layout:
    pieces = outline.pieces.copy()
    for piece, parts in outline.places:
        pieces[piece] = "".join(part if isinstance(part, str) else texts[part] for part in parts)
    return Layout(pieces, outline.learned, dropped_text=False, frame=outline.frame)


def _outline_of(renderer: Renderer, record: Record, ends: Sequence[_Ends]) -> Outline | None:
    """The outline of a record's shape; None where the template does not print each text once."""
    marked, places = _marked(record, ends), places_of(record, ends)
    text = composed(renderer.gaps, places, [_mark(i) for i in range(len(ends))]) if places else None
    try:
        layout = lay_out_by_template(renderer, marked) if text is None else cut_rendering(renderer, marked, text)
    except Reject:
        return None
    split = [_MARK.split(piece) for piece in layout.pieces]  # text, number, text, number, ..., text
    numbers = [int(number) for parts in split for number in parts[1::2]]
    if layout.dropped_text or sorted(numbers) != list(range(len(ends))):
        return None
    if places and text is None:
        learn(renderer.gaps, places, numbers, _MARK.split("".join(layout.pieces))[::2])
    of_pieces: list[tuple[int, list[str | int]]] = [
        (i, [int(part) if k % 2 else part for k, part in enumerate(parts) if part])
        for i, parts in enumerate(split)
        if len(parts) > 1
    ]
    return Outline(layout.pieces, of_pieces, layout.learned, frame_of(renderer, layout))


def _mark(number: int) -> str:
    return f"\ufdd0{number}\ufdd1"


def _shape_of(record: Record, control_prefix: str) -> tuple[Shape, list[str]] | None:
    """The shape of a record and its texts; None where a text is not plain, or something else is in the way.

    The names and ids of messages are not in it: the templates do not print them.
    """
    texts = [to_json(tool) for tool in record.tools]
    shape: list[Any] = [len(texts), record.reasoning, repr(record.template_options) if record.template_options else ""]
    for message in record.messages:
        kinds = "text"
        if not isinstance(message.content, str):
            kinds = "".join(map(_kind, message.content))
            if "tt" in kinds or "?" in kinds:
                return None
            texts += [part.text for part in message.content if isinstance(part, Text)]
        elif message.content:
            texts.append(message.content)
        else:
            kinds = ""
        shape += (message.role, message.weight, kinds, message.reasoning is None, len(message.calls))
        if message.reasoning is not None:
            texts.append(message.reasoning)
        for call in message.calls:
            texts += (call.name, to_json(call.arguments))
    cores = [text.strip() for text in texts]
    if not all(_is_plain(core, control_prefix) for core in cores):
        return None
    return (*shape, tuple(map(_ends_of, texts, cores))), cores


def _ends_of(text: str, core: str) -> _Ends:
    """The white space around the core of a text."""
    if len(core) == len(text):
        return "", ""
    before = len(text) - len(text.lstrip())
    return text[:before], text[before + len(core) :]


def _kind(part: Part) -> str:
    return next((letter for kind, letter in _LETTERS if isinstance(part, kind)), "?")


_LETTERS = ((Text, "t"), (Image, "i"), (Video, "v"))


def _is_plain(text: str, control_prefix: str) -> bool:
    """Whether plain_templates of a family print a text as it is, wherever it stands in a record, but for its ends."""
    if not text or control_prefix in text:
        return False
    if _TAGS[0] in text or _TAGS[1] in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:  # half of a surrogate pair, which is a Reject of its own
        return False


def _marked(record: Record, ends: Sequence[_Ends]) -> Record:
    """The record with a mark in the place of each text, between its ends, numbered in the order of _shape_of."""
    marks = (f"{before}{_mark(number)}{behind}" for number, (before, behind) in enumerate(ends))
    tools = tuple(MarkedJson(next(marks)) for _ in record.tools)
    messages = []
    for message in record.messages:
        content: str | tuple[Part, ...] = (
            message.content and next(marks)
            if isinstance(message.content, str)
            else tuple(Text(next(marks)) if isinstance(part, Text) else part for part in message.content)
        )
        reasoning = None if message.reasoning is None else next(marks)
        calls = tuple(ToolCall(next(marks), MarkedJson(next(marks)), call.id) for call in message.calls)
        messages.append(replace(message, content=content, reasoning=reasoning, calls=calls))
    return replace(record, messages=tuple(messages), tools=tools)
