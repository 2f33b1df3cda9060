"""The transform `join`: neighbouring rows of a chunk become one sample, named by the first of them.

What stands before `join` in the list is done to each row for itself; what stands behind it draws once for a group, so
that all rows of a group get the same prompt, or all of them their summary. A row that cannot be read is rejected alone,
before it is in a group; a group that makes no sample, such as one that is too long for a pack, is taken apart.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from lmms.configs.settings.transforms import Join, Transform
from lmms.prep.choice.evaluation import is_for_evaluation
from lmms.prep.records.parts import Image
from lmms.prep.records.read import read_record
from lmms.prep.records.record import Message, Record
from lmms.prep.reject import Reject
from lmms.prep.render.renderer import Renderer
from lmms.prep.sample.pictures import measured
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sample.samples import Made, attempt, changed, draft_of, finish_alone
from lmms.prep.sample.text_sample import MadeText
from lmms.prep.sources import Source
from lmms.prep.transforms.join import joined, kinship

ALONE = "transform join"
"""Note about a record that shares its conversation with no other: `join` was not used for it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A row that is read and waits for its group."""

    row: int
    variants: tuple[Record, ...]
    """What the transforms before `join` made of the row, with their pictures read."""
    is_for_evaluation: bool
    copies: int


@dataclass(frozen=True, slots=True)
class Joined:
    """What became of the rows of a sample, or of the one row of a reject."""

    rows: tuple[int, ...]
    copies: int
    made: Made | MadeText | Reject


def join_of(transforms: Sequence[Transform]) -> Join | None:
    """The transform that joins rows, if any."""
    return next((step for step in transforms if isinstance(step, Join)), None)


def joined_rows(
    taken: Iterable[tuple[Any, int, int]],
    join: Join,
    source_id: int,
    source: Source,
    renderer: Renderer,
    recipe: Recipe,
) -> Iterator[Joined]:
    """What becomes of rows that are joined: of those that can be read in groups, of the others alone.

    taken: (value, row, copies) of each row.
    """
    rejects: list[Joined] = []

    def members() -> Iterator[Member]:
        for value, row, copies in taken:
            read = attempt(partial(_member, value, row, copies, source, recipe), value, row, source)
            if isinstance(read, Reject):
                rejects.append(Joined((row,), copies, read))
            else:
                yield read

    for group in _groups(members(), join.images):
        try:
            yield from _join_group(group, join, source_id, source, renderer, recipe)
        except Exception as error:
            rows = ", ".join(str(each.row) for each in group)
            error.add_note(f"while the rows {rows} of {source.name} were joined")
            raise
    yield from rejects


def _member(value: Any, row: int, copies: int, source: Source, recipe: Recipe) -> Member:
    """A row with its pictures read, which may be joined. Raises Reject."""
    record = read_record(value, source.reading)
    held_out = is_for_evaluation(source.choice, value, record)
    before, _ = _parted(source.reading.transforms)
    variants = changed(record, before, row, held_out, source, recipe)
    if recipe.vision:
        variants = [_with_pictures(variant, source, recipe) for variant in variants]
    return Member(row, tuple(variants), held_out, copies)


def _groups(members: Iterable[Member], most: int) -> Iterator[list[Member]]:
    """The rows of each group, in the order in which groups are full: rows that are alike in what counts for all."""
    waiting: dict[tuple[bool, int, int], list[Member]] = {}
    for each in members:
        key = (each.is_for_evaluation, each.copies, len(each.variants))
        waiting.setdefault(key, []).append(each)
        if len(waiting[key]) == most:
            yield waiting.pop(key)
    yield from waiting.values()


def _join_group(
    group: Sequence[Member], join: Join, source_id: int, source: Source, renderer: Renderer, recipe: Recipe
) -> Iterator[Joined]:
    """What became of the rows of a group: samples of several rows, of one row, or rejects."""
    _, behind = _parted(source.reading.transforms)
    ready = []
    for each in group:
        try:
            ready.append(replace(each, variants=_behind(each, group[0].row, behind, source, recipe)))
        except Reject as reject:
            yield Joined((each.row,), each.copies, reject)
    for part in _alike(ready):
        yield from _made(part, join, source_id, source, renderer, recipe)


def _parted(transforms: Sequence[Transform]) -> tuple[Sequence[Transform], Sequence[Transform]]:
    """The transforms before `join`, and those behind it."""
    place = next(i for i, step in enumerate(transforms) if isinstance(step, Join))
    return transforms[:place], transforms[place + 1 :]


def _with_pictures(record: Record, source: Source, recipe: Recipe) -> Record:
    def turn(message: Message) -> Message:
        if isinstance(message.content, str):
            return message
        parts = (measured(p, source, recipe) if isinstance(p, Image) else p for p in message.content)
        return replace(message, content=tuple(parts))

    return replace(record, messages=tuple(map(turn, record.messages)))


def _behind(
    each: Member, first_row: int, transforms: Sequence[Transform], source: Source, recipe: Recipe
) -> tuple[Record, ...]:
    """The variants of a row after the transforms behind `join`, which draw by the first row of the group."""
    made = (
        changed(variant, transforms, f"join {first_row} {number}", each.is_for_evaluation, source, recipe)
        for number, variant in enumerate(each.variants)
    )
    return tuple(chain.from_iterable(made))


def _alike(members: Sequence[Member]) -> list[list[Member]]:
    """The members that share a sample, in the order of their rows."""
    by_kinship: dict[Hashable, list[Member]] = {}
    for each in members:
        kinships = tuple(map(kinship, each.variants))
        by_kinship.setdefault(each.row if None in kinships else kinships, []).append(each)
    return list(by_kinship.values())


def _made(
    members: Sequence[Member], join: Join, source_id: int, source: Source, renderer: Renderer, recipe: Recipe
) -> Iterator[Joined]:
    """The sample of some rows; where there can be none, that of each row."""
    first = members[0]
    variants = (
        list(first.variants)
        if len(members) == 1
        else [joined(each, join.label) for each in zip(*(m.variants for m in members), strict=True)]
    )
    try:
        draft = draft_of(variants, (source_id, first.row), first.is_for_evaluation, source, renderer, recipe)
        made = finish_alone(draft, renderer, recipe)
    except Reject as reject:
        if len(members) == 1:
            yield Joined((first.row,), first.copies, reject)
        else:
            for each in members:
                yield from _made([each], join, source_id, source, renderer, recipe)
        return
    if len(members) == 1:
        made = replace(made, notes=(*made.notes, ALONE))
    yield Joined(tuple(each.row for each in members), first.copies, made)
