"""Record -> token ids and target spans, by the model's own chat template and tokenizer, in one rendering.

The conversation is rendered once, whole. The text is then cut at the special tokens, which is where the tokenizer
itself cuts first, so the pieces give the ids of the whole. Special-token text that a user typed must stay text: a mark
is put into that text before the template runs and taken out afterwards, so the text never becomes a control token.

Turns are found in the rendering by the family's tokens for start and end and compared with the record's: what a
template drops or moves is a Reject here, never a shifted placeholder. RENDERER_VERSION is part of a build's
fingerprint.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lmms.configs.contract.families import family_facts
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.errors import ModelError
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.render.families import FAMILIES
from lmms.prep.render.families.family import Family
from lmms.prep.render.template import compile_template

RENDERER_VERSION = "1"

_MARKS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Noncharacters: Unicode keeps them free for such private use, and they have no place in interchanged text."""


@dataclass(frozen=True, slots=True)
class Renderer:
    """The template and tokenizer of one model, loaded."""

    family: Family
    image: str | None
    """The special token that stands for an image; None for models that read text only."""
    template: jinja2.Template
    special_tokens: dict[str, str]
    tokenizer: Tokenizer
    control_ids: dict[str, int]
    """Special tokens that the rendering may hold -> id."""
    control: re.Pattern[str]


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as the model sees it."""

    input_ids: npt.NDArray[np.int32]
    targets: list[tuple[int, int]]
    """[start, end) of the tokens of each weighted assistant turn, its end token included."""
    weights: list[float]
    """Weight of the turn of each entry of `targets`."""
    image_starts: list[int]
    """Position of the first token of each image."""
    dropped_text: bool
    """Whether the template left out text of the record, such as earlier reasoning."""


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    images: int


def load_renderer(folder: ModelFolder) -> Renderer:
    """Compile the template and load the tokenizer of a model folder."""
    try:
        tokenizer = Tokenizer.from_file(str(folder.tokenizer_json))
    except Exception as error:  # tokenizers raises nothing more precise
        raise ModelError(f"{folder.tokenizer_json} is not a tokenizer that can be loaded: {error}") from error
    control_ids = {}
    for token_id, token in tokenizer.get_added_tokens_decoder().items():
        if token.special:
            if token.lstrip or token.rstrip or token.single_word:
                raise ModelError(f"{folder.tokenizer_json}: special token {token.content!r} strips its surroundings")
            control_ids[token.content] = token_id
    family, facts = FAMILIES[folder.family], family_facts(folder.family, folder.path)
    missing = [token for token in (family.turn_start, family.turn_end) if token not in control_ids]
    if missing:
        raise ModelError(
            f"{folder.tokenizer_json} lacks the special tokens {', '.join(missing)}, expected those of {folder.family}"
        )
    # From here on, special-token text that is left in a piece is text.
    tokenizer.encode_special_tokens = True
    control = re.compile("(" + "|".join(re.escape(t) for t in sorted(control_ids, key=len, reverse=True)) + ")")
    template = compile_template(folder.chat_template)
    return Renderer(
        family=family,
        image=facts.placeholders.get("image"),
        template=template,
        special_tokens=dict(folder.special_tokens),
        tokenizer=tokenizer,
        control_ids=control_ids,
        control=control,
    )


def render_record(renderer: Renderer, record: Record, image_tokens: Sequence[int]) -> Rendered:
    """Render a record whose k-th image takes image_tokens[k] tokens."""
    messages = renderer.family.template_messages(record)
    mark = _free_mark(renderer, messages)
    text = _apply_template(renderer, _marked(messages, renderer, mark) if mark else messages)
    pieces = renderer.control.split(text)  # text, control, text, control, ..., text
    turns, headers = _turns(pieces, renderer)
    _check_turns(turns, record)
    plain = [piece.replace(mark, "") for piece in pieces[::2]] if mark else pieces[::2]
    encoded = renderer.tokenizer.encode_batch(plain, add_special_tokens=False)
    roles = {i: turn.role for i, turn in zip(headers, turns, strict=True)}
    dropped_text = _drops_text(record, "".join(plain))
    return _assemble(renderer, record, pieces, headers, roles, encoded, image_tokens, dropped_text)


def _assemble(
    renderer: Renderer,
    record: Record,
    pieces: Sequence[str],
    headers: dict[int, int],
    roles: dict[int, str],
    encoded: Sequence[Any],
    image_tokens: Sequence[int],
    dropped_text: bool,
) -> Rendered:
    """Ids of the pieces and control tokens in order; a target opens after an assistant header, closes after its end."""
    weights = iter([m.weight for m in record.messages if m.role == "assistant"])
    sizes = iter(image_tokens)
    ids: list[int] = []
    targets, target_weights, image_starts = [], [], []
    opened: int | None = None
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            encoding = encoded[i // 2]
            if i in headers and opened is not None:
                raise _unclosed(renderer.family.turn_end)
            if roles.get(i) == "assistant" and (weight := next(weights)):
                opened = len(ids) + sum(end <= headers[i] for _, end in encoding.offsets)
            ids.extend(encoding.ids)
        elif piece == renderer.image:
            image_starts.append(len(ids))
            ids.extend([renderer.control_ids[piece]] * next(sizes))
        else:
            ids.append(renderer.control_ids[piece])
            if piece == renderer.family.turn_end and opened is not None:
                targets.append((opened, len(ids)))
                target_weights.append(weight)
                opened = None
    if opened is not None:
        raise _unclosed(renderer.family.turn_end)
    if not targets:
        raise Reject("no_target_tokens", "every assistant turn has weight 0: nothing to learn from", "messages")
    return Rendered(np.array(ids, np.int32), targets, target_weights, image_starts, dropped_text)


def _unclosed(turn_end: str) -> Reject:
    return Reject(
        "template_changes_record",
        f"the chat template does not close an assistant turn with {turn_end}: the model would not learn where to stop",
        "messages",
    )


def _turns(pieces: Sequence[str], renderer: Renderer) -> tuple[list[_Turn], dict[int, int]]:
    """The turns of a rendering, and for each piece that opens a turn the length of its header in characters."""
    turns: list[_Turn] = []
    headers = {}
    for i, piece in enumerate(pieces):
        if i % 2 == 1 and piece == renderer.family.turn_start:
            role, newline, _ = pieces[i + 1].partition("\n")
            turns.append(_Turn(role, 0))
            headers[i + 1] = len(role) + len(newline)
        elif i % 2 == 1 and piece == renderer.image:
            if not turns:
                raise Reject("template_changes_record", "the template puts an image before the first turn", "messages")
            turns[-1] = _Turn(turns[-1].role, turns[-1].images + 1)
    return turns, headers


def _check_turns(turns: Sequence[_Turn], record: Record) -> None:
    expected = [_Turn(m.role, len(m.images)) for m in record.messages]
    if len(turns) == len(expected) + 1 and turns[0] == _Turn("system", 0):
        turns = turns[1:]  # the template's own system turn
    if list(turns) == expected:
        return
    i = next(
        (i for i, (a, b) in enumerate(zip(turns, expected, strict=False)) if a != b), min(len(turns), len(expected))
    )
    turn = f"a {turns[i].role} turn with {turns[i].images} images" if i < len(turns) else "nothing"
    wanted = f"a {expected[i].role} turn with {expected[i].images} images" if i < len(expected) else "nothing"
    raise Reject(
        "template_changes_record",
        f"the chat template renders {turn} where the record has {wanted}: it drops, adds or moves a turn or an image",
        f"messages[{i}]",
    )


def _drops_text(record: Record, rendering: str) -> bool:
    texts = [part for m in record.messages for part in (m.text, m.reasoning or "")]
    return any(text.strip() not in rendering for text in texts)


def _free_mark(renderer: Renderer, messages: Sequence[dict[str, Any]]) -> str:
    """A character that occurs nowhere in the content, or "" when no content holds special-token text."""
    texts = list(_strings(messages))
    if not any("<|" in text and renderer.control.search(text) for text in texts):
        return ""
    mark = next((mark for mark in _MARKS if not any(mark in text for text in texts)), None)
    if mark is None:
        raise Reject(
            "template_error", "the text holds special tokens and all 32 noncharacters U+FDD0..U+FDEF", "messages"
        )
    return mark


def _strings(messages: Sequence[dict[str, Any]]) -> Sequence[str]:
    texts: list[str] = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        texts += [message["reasoning_content"]] if "reasoning_content" in message else []
    return texts


def _marked(messages: Sequence[dict[str, Any]], renderer: Renderer, mark: str) -> list[dict[str, Any]]:
    """The messages with the mark inside every special-token text of their content."""

    def conceal(text: str) -> str:
        return renderer.control.sub(lambda token: token[0][0] + mark + token[0][1:], text)

    def concealed(content: Any) -> Any:
        if isinstance(content, str):
            return conceal(content)
        return [{**part, "text": conceal(part["text"])} if "text" in part else part for part in content]

    return [
        {key: value if key == "role" else concealed(value) for key, value in message.items()} for message in messages
    ]


def _apply_template(renderer: Renderer, messages: Sequence[dict[str, Any]]) -> str:
    try:
        return renderer.template.render(
            messages=messages, tools=None, add_generation_prompt=False, **renderer.special_tokens
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise Reject("template_error", f"the chat template fails: {error}", "messages") from None
