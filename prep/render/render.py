"""Record -> token ids and target spans, by the model's own chat template and tokenizer, in one rendering.

The conversation is rendered once, whole. The text is then cut at the special tokens, which is where the tokenizer
itself cuts first, so the pieces give the ids of the whole. Special-token text that a user typed must stay text: a mark
is put into that text before the template runs and taken out afterwards, so the text never becomes a control token.

Turns are found in the rendering by the family's tokens for start and end and compared with the record's: what a
template drops or moves is a Reject here, never a shifted placeholder. RENDERER_VERSION is part of a build's
fingerprint.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from lmms.configs.contract.families import family_facts
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.errors import ModelError
from lmms.prep.records.reasoning import think_blocks
from lmms.prep.records.record import Message, Record
from lmms.prep.records.strict_json import check_text
from lmms.prep.reject import Reject
from lmms.prep.render.concealed import concealed, free_mark
from lmms.prep.render.families import FAMILIES
from lmms.prep.render.families.family import Family
from lmms.prep.render.template import ChatTemplate, compile_template
from lmms.prep.render.turns import Turn, check_texts, find_turns, match_turns

RENDERER_VERSION = "2"


@dataclass(frozen=True, slots=True)
class Renderer:
    """The template and tokenizer of one model, loaded."""

    family: Family
    image: str | None
    """The special token that stands for an image; None for models that read text only."""
    template: ChatTemplate
    special_tokens: dict[str, str]
    tokenizer: Tokenizer
    control_ids: dict[str, int]
    """Special tokens that the rendering may hold -> id."""
    control: re.Pattern[str]
    control_prefix: str
    """What all special tokens begin with."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as the model sees it."""

    input_ids: npt.NDArray[np.int32]
    targets: list[tuple[int, int]]
    """[start, end) of tokens to learn, in order: of each weighted turn, its end token included."""
    weights: list[float]
    """Weight of the turn of each entry of `targets`."""
    image_starts: list[int]
    """Position of the first token of each image."""
    dropped_text: bool
    """Whether the template left out text of the record, such as earlier reasoning."""


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
    tokens = (family.turn_start, family.turn_end, family.text_end, *(family.image_around or ()))
    missing = [token for token in tokens if token not in control_ids]
    if missing:
        raise ModelError(
            f"{folder.tokenizer_json} lacks the special tokens {', '.join(missing)}, expected those of {folder.family}"
        )
    # From here on, special-token text that is left in a piece is text.
    tokenizer.encode_special_tokens = True
    control = re.compile("(" + "|".join(re.escape(t) for t in sorted(control_ids, key=len, reverse=True)) + ")")
    return Renderer(
        family=family,
        image=facts.placeholders.get("image"),
        template=compile_template(folder.chat_template),
        special_tokens=dict(folder.special_tokens),
        tokenizer=tokenizer,
        control_ids=control_ids,
        control=control,
        control_prefix=os.path.commonprefix(list(control_ids)),
    )


def render_record(renderer: Renderer, record: Record, image_tokens: Sequence[int]) -> Rendered:
    """Render a record whose k-th image takes image_tokens[k] tokens."""
    _check_reads(renderer.template, record)
    values: list[Any] = [renderer.family.template_messages(record), list(record.tools), record.template_options]
    mark = free_mark(values, renderer.control, renderer.control_prefix)
    if mark:
        values = concealed(values, renderer.control, mark)
    pieces = renderer.control.split(_apply_template(renderer, *values))  # text, control, text, control, ..., text
    plain = [piece.replace(mark, "") for piece in pieces[::2]] if mark else pieces[::2]
    family = renderer.family
    turns = match_turns(find_turns(pieces, family.turn_start, family.turn_end, renderer.image), record)
    texts = [_text_of(turn, plain) for turn, _ in turns]
    dropped_text = check_texts(texts, [group for _, group in turns], record)
    encoded = renderer.tokenizer.encode_batch(plain, add_special_tokens=False)
    ids, starts, image_starts = _place(renderer, pieces, encoded, image_tokens)
    targets: list[tuple[int, int]] = []
    weights: list[float] = []
    for turn, group in turns:
        weight = _weight(group)
        if not weight:
            continue
        masked = record.reasoning == "masked" and turn.role == "assistant"
        spans = _join(_learned(turn, plain, encoded, starts, masked, family.turn_end))
        targets += spans
        weights += [weight] * len(spans)
    if not targets:
        raise Reject("no_target_tokens", "every turn to learn from has weight 0", "messages")
    return Rendered(np.array(ids, np.int32), targets, weights, image_starts, dropped_text)


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


def _text_of(turn: Turn, plain: Sequence[str]) -> str:
    """The text of a turn, without its header."""
    last = turn.first if turn.end is None else turn.end - 1
    return "".join(plain[turn.first // 2 : last // 2 + 1])[turn.header :]


def _place(
    renderer: Renderer, pieces: Sequence[str], encoded: Sequence[Any], image_tokens: Sequence[int]
) -> tuple[list[int], list[int], list[int]]:
    """(ids, position of the first token of each piece, position of the first token of each image)."""
    sizes = iter(image_tokens)
    ids: list[int] = []
    starts, image_starts = [], []
    for i, piece in enumerate(pieces):
        starts.append(len(ids))
        if i % 2 == 0:
            ids.extend(encoded[i // 2].ids)
        elif piece == renderer.image:
            image_starts.append(len(ids))
            ids.extend([renderer.control_ids[piece]] * next(sizes))
        else:
            ids.append(renderer.control_ids[piece])
    return ids, starts, image_starts


def _weight(group: Sequence[Message]) -> float:
    """The weight of the turn that shows these messages."""
    weights = {message.weight for message in group}
    if len(weights) > 1:
        message = "the results of several calls share a turn of the template, but differ in weight"
        raise Reject("conflicting_weights", message, "messages")
    return max(weights, default=0.0)


def _learned(
    turn: Turn, plain: Sequence[str], encoded: Sequence[Any], starts: Sequence[int], masked: bool, turn_end: str
) -> Iterator[tuple[int, int]]:
    """[start, end) of the tokens of a turn to learn: its text behind the header, and its end token. No media."""
    if turn.end is None:
        raise Reject(
            "template_changes_record",
            f"the chat template does not close a turn with {turn_end}: the model would not learn where to stop",
            "messages",
        )
    for i in range(turn.first, turn.end, 2):
        text, encoding = plain[i // 2], encoded[i // 2]
        begin = turn.header if i == turn.first else 0
        left_out = [(begin + a, begin + b) for a, b in think_blocks(text[begin:])] if masked else []
        for first, last in _kept_tokens(encoding, len(text), begin, left_out):
            yield starts[i] + first, starts[i] + last
    yield starts[turn.end], starts[turn.end] + 1


def _kept_tokens(
    encoding: Any, length: int, begin: int, left_out: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """[first, last) of the tokens that reach behind character `begin` and touch no range that is left out."""
    first = token_behind(encoding, begin, length)
    for low, high in left_out:
        yield first, token_behind(encoding, low, length)
        first = sum(start < high for start, _ in encoding.offsets)
    yield first, len(encoding.ids)


def token_behind(encoding: Any, character: int, length: int) -> int:
    """The first token that ends behind this character."""
    if not character:
        return 0
    token = encoding.char_to_token(character) if character < length else None
    return sum(end <= character for _, end in encoding.offsets) if token is None else int(token)


def _join(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans that are not empty, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if start < end and joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return joined
