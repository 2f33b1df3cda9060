"""Records -> token ids and target spans, by the model's own chat template and tokenizer, in one rendering.

Many records are rendered together: their texts are tokenized in one call, and their ids are placed in one array.
RENDERER_VERSION is part of a build's fingerprint.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.prep.records.reasoning import think_blocks
from lmms.prep.records.record import Record
from lmms.prep.render.clips import with_clips
from lmms.prep.render.layout import Frame, Layout, LearnedTurn, frame_of
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
    return render_layouts(renderer, [(layout, image_tokens)]).rendered(0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Several records, rendered together."""

    ids: npt.NDArray[np.int32]
    """int32 [tokens]: those of all records."""
    cuts: list[int]
    """The first token of each record, and the end of the last."""
    targets: npt.NDArray[np.int32]
    """int32 [spans, 2]: the targets of all records, counted from the first token of each."""
    weights: npt.NDArray[np.float64]
    """float64 [spans]."""
    target_cuts: list[int]
    """The first span of each record, and the end of the last."""
    media: Mapping[int, list[int]]
    """The token at which each picture of a record begins, for the records that have pictures."""
    layouts: Sequence[Layout]

    def tokens(self, number: int) -> int:
        """The tokens of a record."""
        return self.cuts[number + 1] - self.cuts[number]

    def rendered(self, number: int) -> Rendered:
        """A record of the batch."""
        spans = slice(self.target_cuts[number], self.target_cuts[number + 1])
        return Rendered(
            self.ids[self.cuts[number] : self.cuts[number + 1]],
            list(map(tuple, self.targets[spans].tolist())),
            self.weights[spans].tolist(),
            self.media.get(number, []),
            self.layouts[number].dropped_text,
        )


def render_layouts(renderer: Renderer, layouts: Sequence[tuple[Layout, Sequence[int]]]) -> Batch:
    """The tokens of several records, each with the tokens that its pictures and rows of videos take."""
    given = [layout for layout, _ in layouts]
    frames = [layout.frame or frame_of(renderer, layout) for layout in given]
    placed = _place(renderer, frames, layouts)
    cuts = placed.starts[placed.firsts]
    targets, weights, counts = _targets(renderer, placed, frames, given)
    targets -= np.repeat(cuts[:-1], counts)[:, None]
    return Batch(
        ids=placed.ids,
        cuts=cuts.tolist(),
        targets=targets.astype(np.int32),
        weights=weights,
        target_cuts=[0, *counts.cumsum().tolist()],
        media={i: _media_starts(placed, frame, i) for i, frame in enumerate(frames) if layouts[i][1]},
        layouts=given,
    )


@dataclass(frozen=True, slots=True)
class _Placed:
    """The pieces of several layouts in one row of tokens; behind the last text of each is a control of no tokens."""

    texts: Sequence[str]
    tokens: Tokens
    """The tokens of the texts."""
    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    """The first token of each piece, and the end of the last."""
    firsts: npt.NDArray[np.int64]
    """The first piece of each layout, and the number of all."""


def _place(renderer: Renderer, frames: Sequence[Frame], layouts: Sequence[tuple[Layout, Sequence[int]]]) -> _Placed:
    texts = [text for layout, _ in layouts for text in layout.pieces[::2]]
    tokens = encode_texts(renderer.encoder, texts)
    firsts = np.zeros(len(frames) + 1, np.int64)
    np.cumsum(np.array([2 * len(frame.control_ids) for frame in frames], np.int64), out=firsts[1:])
    repeats = np.ones(len(texts), np.int64)
    repeats[firsts[1:] // 2 - 1] = 0
    sizes = [size for _, sizes in layouts for size in sizes]
    if sizes:
        repeats[_joined([frame.is_media for frame in frames], np.bool_)] = sizes
    lengths = np.empty(2 * len(texts), np.int64)
    lengths[::2], lengths[1::2] = np.diff(tokens.starts), repeats
    is_text = np.repeat(np.arange(len(lengths)) % 2 == 0, lengths)
    ids = np.empty(len(is_text), np.int32)
    ids[is_text] = tokens.ids
    ids[~is_text] = np.repeat(_joined([frame.control_ids for frame in frames], np.int32), repeats)
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return _Placed(texts, tokens, ids, starts, firsts)


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([*arrays, np.zeros(0, dtype)])


def _media_starts(placed: _Placed, frame: Frame, number: int) -> list[int]:
    first = int(placed.firsts[number])
    starts: list[int] = (placed.starts[first + 1 + 2 * np.flatnonzero(frame.is_media)] - placed.starts[first]).tolist()
    return starts


def _targets(
    renderer: Renderer, placed: _Placed, frames: Sequence[Frame], layouts: Sequence[Layout]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """int64 [spans, 2], float64 [spans], int64 [layouts]: targets, their weights, and how many are of each layout.

    Places are those of all tokens. The targets of most layouts follow from where their turns begin; those of the others
    are found one by one.
    """
    counts = np.array([len(frame.turns) for frame in frames], np.int64)
    turns = _joined([frame.turns for frame in frames], np.int64) + np.repeat(placed.firsts[:-1], counts)
    weights = _joined([frame.weights for frame in frames], np.float64)
    targets = np.stack([placed.starts[turns], placed.starts[turns + 1] + 1], axis=1)
    headers = [ids for frame in frames for ids in frame.header_ids]
    has_header = _add_headers(placed, headers, targets)
    of_layout = np.repeat(np.arange(len(frames)), counts)
    is_plain = np.array([frame.is_plain for frame in frames], bool)
    is_plain[of_layout[~has_header]] = False
    if is_plain.all():
        return targets, weights, counts
    spans, of_spans = list(np.split(targets, counts.cumsum()[:-1])), list(np.split(weights, counts.cumsum()[:-1]))
    for i in np.flatnonzero(~is_plain).tolist():
        learned = [
            (span, turn.weight)
            for turn in layouts[i].learned
            for span in _join(_learned(renderer, placed, turn, int(placed.firsts[i])))
        ]
        counts[i] = len(learned)
        spans[i] = np.array([span for span, _ in learned], np.int64).reshape(-1, 2)
        of_spans[i] = np.array([weight for _, weight in learned], np.float64)
    return np.concatenate(spans), np.concatenate(of_spans), counts


def _add_headers(
    placed: _Placed, headers: Sequence[tuple[int, ...]], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Move the begin of each turn behind the ids of its header; bool [turns]: whether these ids stand there."""
    has_header = np.ones(len(headers), bool)
    kinds = {ids: number for number, ids in enumerate(dict.fromkeys(headers))}
    kind_of = np.fromiter(map(kinds.__getitem__, headers), np.int64, len(headers))
    for ids, number in kinds.items():
        of_kind = np.flatnonzero(kind_of == number)
        begins = targets[of_kind, 0]
        has_header[of_kind] = begins + len(ids) < targets[of_kind, 1]
        for k, token in enumerate(ids):
            has_header[of_kind] &= placed.ids[np.minimum(begins + k, len(placed.ids) - 1)] == token
        targets[of_kind, 0] += len(ids)
    return has_header


def _learned(renderer: Renderer, placed: _Placed, turn: LearnedTurn, first: int) -> Iterator[tuple[int, int]]:
    """[start, end) of the tokens of a turn to learn: its text behind the header, and its end token. No media."""
    for i in range(first + turn.first, first + turn.end, 2):
        header = turn.header if i == first + turn.first else 0
        yield from _learned_of_text(renderer, placed, i, header, turn.is_masked)
    end = int(placed.starts[first + turn.end])
    yield end, end + 1


def _learned_of_text(
    renderer: Renderer, placed: _Placed, piece: int, header: int, is_masked: bool
) -> Iterator[tuple[int, int]]:
    """[start, end) of the tokens of a piece that reach behind the header and touch no think block that is masked."""
    text, start, end = placed.texts[piece // 2], int(placed.starts[piece]), int(placed.starts[piece + 1])
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
