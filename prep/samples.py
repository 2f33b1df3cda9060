"""Record -> samples: a pack of one conversation or of a piece of a document, with the bytes of its pictures.

A sample has the form of the contract's Pack, so the spool between reading and writing needs no other format.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.geometry import Vision, grid_patches, grid_tokens
from lmms.configs.contract.pack import Media, Pack
from lmms.configs.settings.sources import TooLong
from lmms.prep.choice.evaluation import is_for_evaluation
from lmms.prep.media.images import image_size
from lmms.prep.media.network import Network
from lmms.prep.media.read import read_image
from lmms.prep.media.resize import picture_grid, with_areas
from lmms.prep.records.cut import first_messages, learned_ends
from lmms.prep.records.document import Document
from lmms.prep.records.parts import Image
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.render.document import Piece, cut_document, render_document
from lmms.prep.render.render import Rendered, Renderer, render_record
from lmms.prep.sources import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Settings that turn a record into a sample, the same for every record of a build."""

    limits: PackLimits
    vision: Vision | None
    verify_media: Literal["header", "structure", "decode"]
    max_image_pixels: int
    text_overlap: int
    """Tokens at the end of a piece of a document that the next piece begins with, as context."""
    network: Network | None = None
    """How images are fetched that records name by http; None: they are rejected."""


_FURTHER = 8
"""Beginnings of a conversation that are tried beyond the first that does not fit."""
NO_TEXT = "pictures of a long document with no text between them"
"""Note about a document of which a piece has nothing to learn, and is left out."""
LEFT_OUT = "text that the template leaves out"
"""Note about a record of which a template leaves out text that is only context."""


@dataclass(frozen=True, slots=True)
class _Picture:
    data: bytes
    size: tuple[int, int]
    grid_thw: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Made:
    """What one record became."""

    samples: tuple[Pack, ...]
    """One, or the pieces of a long document in order."""
    notes: tuple[str, ...]
    """Names of what was not used."""
    cut_turns: int
    """Turns at the end that were left out, since the conversation was too long."""
    is_for_evaluation: bool


def make_samples(value: Any, row: int, source_id: int, source: Source, renderer: Renderer, recipe: Recipe) -> Made:
    """The samples of one raw value. Raises Reject."""
    record = read_record(value, source.reading)
    held_out = is_for_evaluation(source.choice, value, record)
    pictures = [_picture(image, source, recipe) for image in record.images] if recipe.vision else []
    sizes = [grid_tokens(p.grid_thw, recipe.limits.merge_size) for p in pictures]
    if isinstance(record, Document):
        pieces = _cut_document(record, sizes, pictures, source.reading.too_long, renderer, recipe)
        made = [(piece.rendered, pictures[slice(*piece.images)]) for piece in pieces]
        cut_turns, notes = 0, record.unused
    else:
        kept, rendered = _cut_turns(record, sizes, pictures, source.reading.too_long, renderer, recipe)
        made = [(rendered, pictures[: len(kept.images)])]
        cut_turns = len(record.messages) - len(kept.messages)
        notes = (*record.unused, *([LEFT_OUT] if rendered.dropped_text else []))
    if source.chosen_by:
        notes = tuple(note for note in notes if note.removeprefix("column ") not in source.chosen_by)
    samples = tuple(_sample(rendered, of_piece, record.weight, (source_id, row), recipe) for rendered, of_piece in made)
    return Made(samples, notes, cut_turns, held_out)


def _cut_document(
    document: Document,
    sizes: Sequence[int],
    pictures: Sequence[_Picture],
    too_long: TooLong,
    renderer: Renderer,
    recipe: Recipe,
) -> list[Piece]:
    whole = render_document(renderer, document, sizes)
    if _fits(whole, pictures, recipe.limits):
        return [Piece(whole, (0, len(pictures)))]
    if too_long == "reject" or not document.may_split:
        raise _too_long(whole, pictures, recipe.limits)
    most = (recipe.limits.seq_len, recipe.limits.max_patches)
    return list(cut_document(whole, sizes, [grid_patches(p.grid_thw) for p in pictures], most, recipe.text_overlap))


def _cut_turns(
    record: Record,
    sizes: Sequence[int],
    pictures: Sequence[_Picture],
    too_long: TooLong,
    renderer: Renderer,
    recipe: Recipe,
) -> tuple[Record, Rendered]:
    """The record, or its longest beginning that fits a pack where the settings allow that, with its rendering."""
    rendered = render_record(renderer, record, sizes)
    if _fits(rendered, pictures, recipe.limits):
        return record, rendered
    if too_long != "truncate_turns":
        raise _too_long(rendered, pictures, recipe.limits)

    def beginning(end: int) -> tuple[Record, Rendered]:
        kept = first_messages(record, end)
        return kept, render_record(renderer, kept, sizes[: len(kept.images)])

    def is_longer(end: int) -> bool:
        kept, shorter = beginning(end)
        return not _fits(shorter, pictures[: len(kept.images)], recipe.limits)

    ends = learned_ends(record)
    first = bisect_left(ends, True, key=is_longer)
    # A template may drop reasoning once a question follows, so a longer beginning may be shorter: look a little further.
    fitting = next(
        (i for i in range(min(len(ends), first + _FURTHER) - 1, first - 1, -1) if not is_longer(ends[i])), None
    )
    if fitting is None and not first:
        raise _too_long(rendered, pictures, recipe.limits)
    return beginning(ends[first - 1 if fitting is None else fitting])


def _sample(
    rendered: Rendered, pictures: Sequence[_Picture], weight: float, place: tuple[int, int], recipe: Recipe
) -> Pack:
    """The pack of one sample. place: number of the source, and row."""
    sizes = [grid_tokens(p.grid_thw, recipe.limits.merge_size) for p in pictures]
    return Pack(
        input_ids=rendered.input_ids,
        cu_seqlens=np.array([0, len(rendered.input_ids)], np.int32),
        targets=np.array(rendered.targets, np.int32),
        target_weights=np.array(rendered.weights, np.float64),
        sample_weights=np.array([weight], np.float64),
        samples=np.array([place], np.int64),
        media=tuple(
            Media("image", start, start + size, p.size, p.grid_thw, len(p.data))
            for start, size, p in zip(rendered.image_starts, sizes, pictures, strict=True)
        ),
        media_bytes=b"".join(p.data for p in pictures),
    )


def _picture(image: Image, source: Source, recipe: Recipe) -> _Picture:
    assert recipe.vision is not None
    vision = with_areas(recipe.vision, source.reading.min_pixels, source.reading.max_pixels)
    try:
        data = read_image(image.ref, source.roots, network=recipe.network)
        width, height = image_size(data, recipe.verify_media, recipe.max_image_pixels)
        grid_thw = picture_grid(height, width, vision, image.ask)
    except Reject as reject:
        raise Reject(reject.reason, reject.message, image.place) from None
    return _Picture(data, (width, height), grid_thw)


def _patches(pictures: Sequence[_Picture]) -> int:
    return sum(grid_patches(picture.grid_thw) for picture in pictures)


def _fits(rendered: Rendered, pictures: Sequence[_Picture], limits: PackLimits) -> bool:
    return len(rendered.input_ids) <= limits.seq_len and _patches(pictures) <= limits.max_patches


def _too_long(rendered: Rendered, pictures: Sequence[_Picture], limits: PackLimits) -> Reject:
    tokens, patches = len(rendered.input_ids), _patches(pictures)
    if tokens > limits.seq_len:
        return Reject("too_long", f"{tokens} tokens, a pack holds {limits.seq_len}", "messages")
    return Reject("too_many_patches", f"{patches} patches, a pack holds {limits.max_patches}", "messages")
