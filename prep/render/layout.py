"""Record -> its text by the model's own chat template, cut at the special tokens, and the turns to learn in the text.

The conversation is rendered once, whole. The text is cut at the special tokens, which is where the tokenizer itself
cuts first, so the pieces give the ids of the whole. Special-token text that a user typed must stay text: a mark is put
into that text before the template runs and taken out afterwards, so the text never becomes a control token.

Turns are found in the rendering by the family's tokens for start and end and compared with the record's: what a
template drops or moves is a Reject here, never a shifted placeholder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from lmms.prep.records.record import Message, Record
from lmms.prep.records.strict_json import check_text
from lmms.prep.reject import Reject
from lmms.prep.render.concealed import concealed, free_mark
from lmms.prep.render.renderer import Renderer
from lmms.prep.render.template import ChatTemplate
from lmms.prep.render.turns import Turn, check_texts, find_turns, match_turns


@dataclass(frozen=True, slots=True)
class LearnedTurn:
    """A turn to learn from."""

    first: int
    """The piece of text behind the token that opens the turn."""
    end: int
    """The piece that is the token that closes the turn."""
    header: int
    """Characters of the first piece that are the role, with its line break: they are not learned."""
    weight: float
    is_masked: bool
    """Whether its think blocks are not learned."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What a layout has around its texts, as arrays: layouts of one outline share a frame."""

    control_ids: npt.NDArray[np.int32]
    """int32 [texts]: the token behind each text; 0 behind the last, where none is."""
    is_media: npt.NDArray[np.bool_]
    """bool [texts]: whether that token stands for a picture, or for a row of a video."""
    turns: npt.NDArray[np.int64]
    """int64 [turns]: the piece with which each turn to learn from begins."""
    header_ids: tuple[tuple[int, ...], ...]
    """Ids of the header of each of these turns."""
    weights: npt.NDArray[np.float64]
    """float64 [turns]: weights of the turns."""
    is_plain: bool
    """Whether each of these turns is one text behind a known header, of which all is learned."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A conversation as the template shows it, before it is tokenized."""

    pieces: list[str]
    """Text, control token, text, control token, ..., text."""
    learned: list[LearnedTurn]
    dropped_text: bool
    """Whether the template left out text of the record, such as earlier reasoning."""
    frame: Frame | None = field(default=None, compare=False)
    """None where the template ran, and no outline."""


def lay_out_by_template(renderer: Renderer, record: Record) -> Layout:
    """The text of a record, by running the chat template. Raises Reject."""
    _check_reads(renderer.template, record)
    values: list[Any] = [renderer.family.template_messages(record), list(record.tools), record.template_options]
    mark = free_mark(values, renderer.control, renderer.control_prefix)
    if mark:
        values = concealed(values, renderer.control, mark)
    return cut_rendering(renderer, record, _apply_template(renderer, *values), mark)


def cut_rendering(renderer: Renderer, record: Record, text: str, mark: str | None = None) -> Layout:
    """The layout of a record from its text. mark: what conceals special tokens in the record. Raises Reject."""
    pieces: list[str] = renderer.control.split(text)
    family = renderer.family
    turns = match_turns(find_turns(pieces, family.turn_start, family.turn_end, renderer.kinds), record)
    if mark:
        pieces[::2] = [piece.replace(mark, "") for piece in pieces[::2]]
    texts = [_text_of(turn, pieces) for turn, _ in turns]
    dropped_text = check_texts(texts, [group for _, group in turns], record)
    learned = []
    for turn, group in turns:
        weight = _weight(group)
        if weight:
            is_masked = record.reasoning == "masked" and turn.role == "assistant"
            learned.append(LearnedTurn(turn.first, _end(turn, family.turn_end), turn.header, weight, is_masked))
    if not learned:
        raise Reject("no_target_tokens", "every turn to learn from has weight 0", "messages")
    return Layout(pieces, learned, dropped_text)


def frame_of(renderer: Renderer, layout: Layout) -> Frame:
    """The frame of a layout."""
    controls = layout.pieces[1::2]
    headers = [renderer.headers.get(layout.pieces[turn.first][: turn.header]) for turn in layout.learned]
    return Frame(
        control_ids=np.array([*map(renderer.control_ids.__getitem__, controls), 0], np.int32),
        is_media=np.array([*(control in renderer.kinds for control in controls), False]),
        turns=np.array([turn.first for turn in layout.learned], np.int64),
        header_ids=tuple(ids or () for ids in headers),
        weights=np.array([turn.weight for turn in layout.learned], np.float64),
        is_plain=all(headers) and not any(turn.is_masked or turn.end > turn.first + 1 for turn in layout.learned),
    )


def _check_reads(template: ChatTemplate, record: Record) -> None:
    """Reject for tools, calls, results and options that the template does not look at."""
    if not template.reads_tools:
        number = next((i for i, m in enumerate(record.messages) if m.calls or m.role == "tool"), None)
        if record.tools or number is not None:
            place = "tools" if record.tools else f"messages[{number}]"
            message = "the chat template has no place for tools; name one that has, with chat_template=FILE"
            raise Reject("tools_unsupported", message, place)
    if fault := template.refused(record.template_options):
        raise Reject("bad_template_option", fault, "chat_template_kwargs")


def _apply_template(
    renderer: Renderer, messages: Sequence[dict[str, Any]], tools: Sequence[Any], options: Mapping[str, Any]
) -> str:
    values = {**renderer.special_tokens, **options}
    try:
        text = renderer.template.template.render(
            messages=messages, tools=tools or None, add_generation_prompt=False, **values
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise Reject("template_error", f"the chat template fails: {error}", "messages") from None
    check_text(text, "messages")
    return text


def _text_of(turn: Turn, pieces: Sequence[str]) -> str:
    """The text of a turn, without its header."""
    last = turn.first if turn.end is None else turn.end - 1
    return "".join(pieces[turn.first : last + 1 : 2])[turn.header :]


def _weight(group: Sequence[Message]) -> float:
    """The weight of the turn that shows these messages."""
    weights = {message.weight for message in group}
    if len(weights) > 1:
        message = "the results of several calls share a turn of the template, but differ in weight"
        raise Reject("conflicting_weights", message, "messages")
    return max(weights, default=0.0)


def _end(turn: Turn, turn_end: str) -> int:
    """The piece that closes a turn to learn from. Raises Reject."""
    if turn.end is None:
        raise Reject(
            "template_changes_record",
            f"the chat template does not close a turn with {turn_end}: the model would not learn where to stop",
            "messages",
        )
    return turn.end
