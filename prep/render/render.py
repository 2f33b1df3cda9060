"""Records -> token ids and target spans, by the model's own chat template and tokenizer, in one rendering.

Many records are rendered together: their texts are tokenized in one call, and their ids are placed in one array.
RENDERER_VERSION is part of a build's fingerprint.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from lmms.prep.records.reasoning import think_blocks
from lmms.prep.records.record import Record
from lmms.prep.render.clips import with_clips
from lmms.prep.render.layout import Layout, LearnedTurn
from lmms.prep.render.outline import lay_out
from lmms.prep.render.renderer import Renderer
from lmms.prep.render.tokens import Tokens, encode_texts, tokens_behind

RENDERER_VERSION = "2"


@dataclass(frozen=True, slots=True)
class Rendered:
    """One conversation as the model sees it."""

    input_ids: npt.NDArray[np.int32]
    targets: list[tuple[int, int]]
    """[start, end) of tokens to learn, in order: of each weighted turn, its end token included."""
    weights: list[float]
    """Weight of the turn of each entry of `targets`."""
    image_starts: list[int]
    """Position of the first token of each picture, and of each row of a video."""
    dropped_text: bool
    """Whether the template left out text of the record, such as earlier reasoning."""


def render_record(
    renderer: Renderer, record: Record, image_tokens: Sequence[int], clips: Sequence[Sequence[float]] = ()
) -> Rendered:
    """Render a record whose k-th picture or row of a video takes image_tokens[k] tokens. Raises Reject.

    clips: the time of each row of each video, in seconds.
    """
    layout = with_clips(renderer, lay_out(renderer, record), clips)
    (rendered,) = render_layouts(renderer, [(layout, image_tokens)])
    return rendered


def render_layouts(renderer: Renderer, layouts: Sequence[tuple[Layout, Sequence[int]]]) -> list[Rendered]:
    """The tokens of several records, each with the tokens that its pictures and rows of videos take."""
    placed = _place(renderer, layouts)
    ends = accumulate((len(layout.pieces) + 1 for layout, _ in layouts), initial=0)
    return [_rendered(renderer, placed, layout, first) for (layout, _), first in zip(layouts, ends, strict=False)]


@dataclass(frozen=True, slots=True)
class _Placed:
    """The pieces of several layouts in one row of tokens; behind the last text of each is a control of no tokens."""

    texts: Sequence[str]
    tokens: Tokens
    """The tokens of the texts."""
    ids: npt.NDArray[np.int32]
    starts: list[int]
    """The first token of each piece, and the end of the last."""
    is_media: list[bool]
    """For each control token whether it stands for a picture, or for a row of a video."""


def _place(renderer: Renderer, layouts: Sequence[tuple[Layout, Sequence[int]]]) -> _Placed:
    texts = [text for layout, _ in layouts for text in layout.pieces[::2]]
    controls = [control for layout, _ in layouts for control in (*layout.pieces[1::2], None)]
    tokens = encode_texts(renderer.encoder, texts)
    kinds = renderer.kinds
    is_media = [control in kinds for control in controls]
    repeats = np.array([control is not None for control in controls], np.int64)
    repeats[is_media] = [size for _, sizes in layouts for size in sizes]
    lengths = np.empty(2 * len(texts), np.int64)
    lengths[::2], lengths[1::2] = np.diff(tokens.starts), repeats
    is_text = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    ids = np.empty(len(is_text), np.int32)
    ids[is_text] = tokens.ids
    control_ids = [0 if control is None else renderer.control_ids[control] for control in controls]
    ids[~is_text] = np.repeat(np.array(control_ids, np.int32), repeats)
    return _Placed(texts, tokens, ids, [0, *lengths.cumsum().tolist()], is_media)


def _rendered(renderer: Renderer, placed: _Placed, layout: Layout, first: int) -> Rendered:
    """One record of a batch. first: its first piece among those of all."""
    start, end = placed.starts[first], placed.starts[first + len(layout.pieces)]
    targets: list[tuple[int, int]] = []
    weights: list[float] = []
    for turn in layout.learned:
        spans = _join(_learned(renderer, placed, turn, first))
        targets += [(a - start, b - start) for a, b in spans]
        weights += [turn.weight] * len(spans)
    is_media = placed.is_media[first // 2 : (first + len(layout.pieces)) // 2]
    image_starts = [placed.starts[first + 1 + 2 * i] - start for i, is_one in enumerate(is_media) if is_one]
    return Rendered(placed.ids[start:end], targets, weights, image_starts, layout.dropped_text)


def _learned(renderer: Renderer, placed: _Placed, turn: LearnedTurn, first: int) -> Iterator[tuple[int, int]]:
    """[start, end) of the tokens of a turn to learn: its text behind the header, and its end token. No media."""
    for i in range(first + turn.first, first + turn.end, 2):
        header = turn.header if i == first + turn.first else 0
        yield from _learned_of_text(renderer, placed, i, header, turn.is_masked)
    end = placed.starts[first + turn.end]
    yield end, end + 1


def _learned_of_text(
    renderer: Renderer, placed: _Placed, piece: int, header: int, is_masked: bool
) -> Iterator[tuple[int, int]]:
    """[start, end) of the tokens of a piece that reach behind the header and touch no think block that is masked."""
    text, start, end = placed.texts[piece // 2], placed.starts[piece], placed.starts[piece + 1]
    left_out = [(header + a, header + b) for a, b in think_blocks(text[header:])] if is_masked else []
    known = renderer.headers.get(text[:header])
    if not left_out and known and tuple(placed.ids[start : start + len(known)].tolist()) == known:
        yield start + len(known), end
        return
    # The token of a block's last character is the last that touches the block.
    places = [header, *(place for low, high in left_out for place in (low, high - 1))]
    kept, *borders = tokens_behind(renderer.encoder, text, placed.ids[start:end], places)
    for block_first, block_last in zip(borders[::2], borders[1::2], strict=True):
        yield start + kept, start + block_first
        kept = block_last + 1
    yield start + kept, end


def _join(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans that are not empty, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if start < end and joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return joined
