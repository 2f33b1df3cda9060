"""Record -> samples: a pack of one conversation or of a piece of a document, with the bytes of its pictures.

A sample has the form of the contract's Pack, so the spool between reading and writing needs no other format.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

import numpy as np

from lmms.configs.contract.pack import Media, Pack
from lmms.configs.settings.sources import Coords
from lmms.configs.settings.transforms import Transform
from lmms.prep.choice.evaluation import is_for_evaluation
from lmms.prep.media.pins import Fetched
from lmms.prep.records.document import Document
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Record
from lmms.prep.records.written import has_shapes, with_shapes_written
from lmms.prep.reject import Reject
from lmms.prep.render.clips import with_clips
from lmms.prep.render.layout import Layout
from lmms.prep.render.outline import lay_out
from lmms.prep.render.render import Rendered, render_layouts
from lmms.prep.render.renderer import Renderer
from lmms.prep.sample.pictures import Picture, measured
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sample.shown import Shown, read_media
from lmms.prep.sample.text_sample import BatchBytes, MadeText, text_sample
from lmms.prep.sample.too_long import cut_turns, document_pieces, fits
from lmms.prep.sources import Source
from lmms.prep.transforms import transformed

T = TypeVar("T")


NO_TEXT = "pictures of a long document with no text between them"
"""Note about a document of which a piece has nothing to learn, and is left out."""
LEFT_OUT = "text that the template leaves out"
"""Note about a record of which a template leaves out text that is only context."""


@dataclass(frozen=True, slots=True)
class Made:
    """What one record became."""

    samples: tuple[Pack, ...]
    """One, or the pieces of a long document in order, or what transforms made of the record."""
    notes: tuple[str, ...]
    """Names of what was not used."""
    cut_turns: int
    """Turns at the end that were left out, since the conversation was too long."""
    is_for_evaluation: bool
    fetched: frozenset[Fetched] = frozenset()
    """Its pictures that came over the network."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A conversation with its pictures and its text, to be tokenized together with others."""

    record: Record
    shown: Shown
    layout: Layout


@dataclass(frozen=True, slots=True)
class Draft:
    """What one record becomes, before its text is tokenized."""

    place: tuple[int, int]
    """Number of the source, and row."""
    source: Source
    variants: tuple[Waiting | Made, ...]
    """One, or what transforms made of the record. A document is tokenized already."""
    is_for_evaluation: bool

    @property
    def layouts(self) -> list[tuple[Layout, Sequence[int]]]:
        """What is to be tokenized, with the tokens of the pictures."""
        return [(each.layout, each.shown.tokens) for each in self.variants if isinstance(each, Waiting)]

    @property
    def is_text(self) -> bool:
        """Whether it is one conversation, of text alone."""
        first = self.variants[0]
        return len(self.variants) == 1 and isinstance(first, Waiting) and not first.shown.media

    @property
    def bytes(self) -> int:
        """About how much memory it takes: its pictures, and its text."""
        waiting = [each for each in self.variants if isinstance(each, Waiting)]
        return sum(len(p.data) for w in waiting for p in w.shown.pictures) + sum(
            len(t) for w in waiting for t in w.layout.pieces
        )


def draft_samples(value: Any, row: int, source_id: int, source: Source, renderer: Renderer, recipe: Recipe) -> Draft:
    """What one raw value becomes. Raises Reject."""
    record = read_record(value, source.reading)
    held_out = is_for_evaluation(source.choice, value, record)
    transforms = source.reading.transforms
    variants = changed(record, transforms, row, held_out, source, recipe) if transforms else [record]
    return draft_of(variants, (source_id, row), held_out, source, renderer, recipe)


def draft_of(
    variants: Sequence[Record | Document],
    place: tuple[int, int],
    held_out: bool,
    source: Source,
    renderer: Renderer,
    recipe: Recipe,
) -> Draft:
    """What all variants of a record become. place: number of the source, and row. Raises Reject."""
    return Draft(place, source, tuple(_drafted(v, place, source, renderer, recipe) for v in variants), held_out)


def finish_alone(draft: Draft, renderer: Renderer, recipe: Recipe) -> Made:
    """The samples of a draft that is tokenized with no other. Raises Reject."""
    batch = render_layouts(renderer, draft.layouts)
    return finish_samples(draft, map(batch.rendered, count()), renderer, recipe)


def attempt(make: Callable[[], T], value: object, row: int, source: Source) -> T | Reject:
    """What is made of a raw value, or why the value is rejected."""
    if isinstance(value, Reject):
        return value
    try:
        return make()
    except Reject as reject:
        return reject
    except RecursionError:
        return Reject("nested_too_deep", "lists or objects of the record are nested too deep")
    except Exception as error:
        error.add_note(f"while row {row} of {source.name} was read")
        raise


def changed(
    record: Record | Document,
    transforms: Sequence[Transform],
    row: int | str,
    held_out: bool,
    source: Source,
    recipe: Recipe,
) -> list[Record]:
    """What transforms make of a record. row: what they draw by, beside the source and the seed. Raises Reject."""
    if isinstance(record, Document):
        raise Reject("transform_error", "transforms change conversations; this record is a text without turns")
    key = (recipe.seed, source.name, row)
    return transformed(record, transforms, key, partial(measured, source=source, recipe=recipe), held_out)


def finish_text(draft: Draft, of: BatchBytes, number: int) -> MadeText:
    """The sample of a draft of text alone that fits a pack. number: of its rendering in the batch."""
    (waiting,) = draft.variants
    assert isinstance(waiting, Waiting)
    notes = _notes(waiting, waiting.layout.dropped_text, draft.source)
    return text_sample(of, number, draft.place, waiting.record.weight, notes, draft.is_for_evaluation)


def finish_samples(draft: Draft, rendered: Iterator[Rendered], renderer: Renderer, recipe: Recipe) -> Made:
    """The samples of a draft. rendered: the renderings of its layouts are taken from here. Raises Reject."""
    # All renderings are taken, also where the first variant is rejected.
    of_draft = iter([next(rendered) for _ in draft.layouts])
    made = [
        each if isinstance(each, Made) else _made(each, next(of_draft), draft, renderer, recipe)
        for each in draft.variants
    ]
    if len(made) == 1:
        return replace(made[0], is_for_evaluation=True) if draft.is_for_evaluation else made[0]
    return Made(
        samples=tuple(sample for each in made for sample in each.samples),
        notes=tuple(dict.fromkeys(note for each in made for note in each.notes)),
        cut_turns=sum(each.cut_turns for each in made),
        is_for_evaluation=draft.is_for_evaluation,
        fetched=frozenset(picture for each in made for picture in each.fetched),
    )


def _drafted(
    record: Record | Document, place: tuple[int, int], source: Source, renderer: Renderer, recipe: Recipe
) -> Waiting | Made:
    shown = read_media(record.images if isinstance(record, Document) else record.media, source, recipe)
    if isinstance(record, Document):
        return _made_of_document(record, shown, place, source, renderer, recipe)
    record = _with_texts(record, shown.stills, source.reading.coords or renderer.family.coords, recipe)
    return Waiting(record, shown, with_clips(renderer, lay_out(renderer, record), shown.clips))


def _made_of_document(
    document: Document,
    shown: Shown,
    place: tuple[int, int],
    source: Source,
    renderer: Renderer,
    recipe: Recipe,
) -> Made:
    try:
        pieces = document_pieces(document, shown, source.reading.too_long, renderer, recipe)
    except Reject as reject:  # the renderer names turns, which a document lacks
        column = document.place if reject.place in ("", "text", "messages") else reject.place
        raise Reject(reject.reason, reject.message, column) from None
    made = [(piece.rendered, shown.pictures[slice(*piece.images)]) for piece in pieces if piece.rendered.targets]
    if not made:
        message = "pictures with no text between them that fits: nothing to learn from"
        raise Reject("no_target_tokens", message, document.place)
    samples = tuple(_sample(rendered, of_piece, document.weight, place, recipe) for rendered, of_piece in made)
    notes = (*document.unused, *([NO_TEXT] if len(made) < len(pieces) else []))
    return Made(samples, _told(notes, source), 0, is_for_evaluation=False, fetched=shown.fetched)


def _made(waiting: Waiting, whole: Rendered, draft: Draft, renderer: Renderer, recipe: Recipe) -> Made:
    record, shown = waiting.record, waiting.shown
    too_long = draft.source.reading.too_long
    kept, rendered = record, whole
    if not fits(whole, shown, recipe.limits):
        kept, rendered = cut_turns(record, shown, whole, too_long, renderer, recipe)
    notes = _notes(waiting, rendered.dropped_text, draft.source)
    sample = _sample(rendered, shown.first(len(kept.media)).pictures, record.weight, draft.place, recipe)
    cut = len(record.messages) - len(kept.messages)
    return Made((sample,), notes, cut, is_for_evaluation=False, fetched=shown.fetched)


def _notes(waiting: Waiting, dropped_text: bool, source: Source) -> tuple[str, ...]:
    unused = waiting.record.unused
    return _told((*unused, LEFT_OUT) if dropped_text else unused, source)


def _told(notes: tuple[str, ...], source: Source) -> tuple[str, ...]:
    """The notes without columns that the settings of the source use."""
    if not source.chosen_by:
        return notes
    return tuple(note for note in notes if note.removeprefix("column ") not in source.chosen_by)


def _with_texts(record: Record, pictures: Sequence[Picture], coords: Coords, recipe: Recipe) -> Record:
    """The record with its boxes and points as text; they stay for a model that has no pictures, which rejects those."""
    if recipe.vision is None or not has_shapes(record):
        return record
    patch = recipe.vision.patch_size
    sizes = [(p.size, (p.grid_thw[2] * patch, p.grid_thw[1] * patch)) for p in pictures]
    return with_shapes_written(record, sizes, coords)


def _sample(
    rendered: Rendered, pictures: Sequence[Picture], weight: float, place: tuple[int, int], recipe: Recipe
) -> Pack:
    """The pack of one sample. place: number of the source, and row."""
    return Pack(
        input_ids=rendered.input_ids,
        cu_seqlens=np.array([0, len(rendered.input_ids)], np.int32),
        targets=np.array(rendered.targets, np.int32),
        target_weights=np.array(rendered.weights, np.float64),
        sample_weights=np.array([weight], np.float64),
        samples=np.array([place], np.int64),
        media=tuple(
            Media(p.kind, start, start + p.tokens(recipe), p.size, p.grid_thw, len(p.data), p.row, p.sound)
            for start, p in zip(rendered.image_starts, pictures, strict=True)
        ),
        media_bytes=b"".join(p.data for p in pictures),
    )
