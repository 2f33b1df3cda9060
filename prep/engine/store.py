"""Chunk -> spool file of its samples, in a worker process."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from time import perf_counter
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from lmms.configs.contract.manifest import SKIPPED
from lmms.configs.contract.mds import encode_sample
from lmms.configs.contract.pack import COLUMNS, Pack
from lmms.prep.choice.filter import LEFT_OUT, take_filtered
from lmms.prep.choice.repeat import copies as copies_of
from lmms.prep.chunks import BLANK, chunk_values
from lmms.prep.engine.processes import step_begun
from lmms.prep.engine.spooled import spool_path
from lmms.prep.engine.work import Work
from lmms.prep.media.pins import Fetched
from lmms.prep.reject import Reject
from lmms.prep.render.render import render_layouts
from lmms.prep.render.renderer import Renderer
from lmms.prep.rows.chunk import Chunk
from lmms.prep.sample.frame_prices import FramePrices
from lmms.prep.sample.joining import Joined, join_of, joined_rows
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sample.samples import Draft, Made, attempt, draft_samples, finish_samples, finish_text
from lmms.prep.sample.text_sample import MadeText, bytes_of
from lmms.prep.sources import Source

_FORMATS = {
    **dict.fromkeys(("source", "tokens", "target_tokens", "patches", "media", "chunk", "copy"), "i4"),
    **dict.fromkeys(("row", "squared_patches", "squared_sounds", "offset", "bytes"), "i8"),
    "sound_positions": "i4",
    **dict.fromkeys(("content_high", "content_low"), "u8"),
}
_NAMES = [
    *("source", "row", "tokens", "target_tokens", "patches", "media", "squared_patches"),
    *("sound_positions", "squared_sounds", "chunk", "offset", "bytes"),
    *("content_high", "content_low", "copy"),
]
BATCH_BYTES = 16 * 2**20
"""Bytes of text and pictures of records that are tokenized together."""

SPOOLED = np.dtype({"names": _NAMES, "formats": [_FORMATS[name] for name in _NAMES]})
"""One entry a sample: all that the plan needs, and where the bytes of the sample are. content_high, content_low: hash
of what the record says. copy: 0, or of a repeated record the number of its copies before.

A row that was joined to an earlier row's sample has an entry too, without tokens, with the place of that sample."""
_NO_COUNTS = (0,) * 7
"""Tokens, target tokens, and the counts of media of a row that was joined to another."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spooled:
    """Result of the rows of one chunk: read == records with samples + len(rejects) + skipped."""

    source: int
    rows: int
    """Rows of the chunk: as many as were read, or more where a share of them was wanted."""
    read: int
    skipped: int
    samples: npt.NDArray[np.void]
    rejects: list[tuple[int, Reject]]
    notes: Counter[str]
    cut_turns: int
    """Turns that were left out of records that are too long."""
    digest: bytes
    file_bytes: int
    filter_columns: frozenset[str]
    """Columns of the filter that at least one record has."""
    fetched: frozenset[Fetched] = frozenset()
    """Pictures of its samples that came over the network."""
    work: Work = field(default_factory=Work)
    """What the chunk took; with the records for training."""
    prices: FramePrices = field(default_factory=FramePrices)
    """What frames of its videos would take in other forms, if that was measured; with the records for training."""


@dataclass(slots=True)
class _Tally:
    """What became of the records of a chunk so far: those for training, or those for evaluation."""

    read: int = 0
    skipped: int = 0
    entries: list[tuple[int, ...]] = field(default_factory=list)
    rejects: list[tuple[int, Reject]] = field(default_factory=list)
    notes: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """Notes of a record, together -> records."""
    cut_turns: int = 0
    fetched: set[Fetched] = field(default_factory=set)
    digest: Any = field(default_factory=xxhash.xxh3_128)

    def skip(self, why: str | None) -> None:
        """Count a record that is left out. why: the setting."""
        self.skipped += 1
        if why:
            self.notes[(SKIPPED + why,)] += 1

    def add(self, made: Made | MadeText, rows: Sequence[int], chunk_id: int, copies: int, file: IO[bytes]) -> None:
        """Write the samples of a record to the spool file, once, and count each copy. rows: the rows of the samples."""
        if made.notes:
            self.notes[made.notes] += 1
        if isinstance(made, MadeText):
            place = (chunk_id, file.tell(), len(made.data))
            counts = (made.tokens, made.target_tokens, *_NO_COUNTS[2:])
            entries: list[tuple[int, ...]] = [(*made.place, *counts, *place, *_halves(made.content))]
            self._write(made.data, file)
        else:
            self.cut_turns += made.cut_turns
            self.fetched |= made.fetched
            contents = [_halves(_content(made, number)) for number in range(len(rows))]
            added = (self._add_sample(sample, rows, contents, chunk_id, file) for sample in made.samples)
            entries = list(chain.from_iterable(added))
        self.entries += [(*entry, copy) for copy in range(copies) for entry in entries]
        if copies > 1:
            self.digest.update(f"{copies} copies".encode())

    def _add_sample(
        self, sample: Pack, rows: Sequence[int], contents: Sequence[tuple[int, int]], chunk_id: int, file: IO[bytes]
    ) -> list[tuple[int, ...]]:
        """Write a sample; its entry, and those of the rows that were joined to it. contents: of each row."""
        source, row = sample.samples[0].tolist()
        # The number of the source is known by the entry alone: what is kept holds with other sources too.
        data = encode_sample(COLUMNS, sample.to_columns() | {"samples": np.array([(0, row)])})
        spans = sample.targets[:, 1] - sample.targets[:, 0]
        shown = (sample.patches, len(sample.media), sample.sum_squared_patches)
        heard = (sample.sound_positions, sample.sum_squared_sounds)
        place = (chunk_id, file.tell(), len(data))
        self._write(data, file)
        counts = (len(sample.input_ids), int(spans.sum()), *shown, *heard)
        joined = [
            (source, other, *_NO_COUNTS, *place, *content)
            for other, content in zip(rows[1:], contents[1:], strict=True)
        ]
        return [(source, row, *counts, *place, *contents[0]), *joined]

    def _write(self, data: bytes, file: IO[bytes]) -> None:
        file.write(data)
        file.write(xxhash.xxh3_64_digest(data))
        self.digest.update(data)

    def in_order(self) -> None:
        """Put everything in the order of the rows: rows that were joined come out of it."""
        self.entries.sort(key=lambda entry: entry[1])
        self.rejects.sort(key=lambda entry: entry[0])

    def spooled(self, chunk: Chunk, filter_columns: frozenset[str]) -> Spooled:
        """The result."""
        return Spooled(
            source=chunk.source,
            rows=len(chunk.rows),
            read=self.read,
            skipped=self.skipped,
            samples=_table(self.entries),
            rejects=self.rejects,
            notes=_each_note(self.notes),
            cut_turns=self.cut_turns,
            digest=self.digest.digest(),
            file_bytes=chunk.file_bytes,
            filter_columns=filter_columns,
            fetched=frozenset(self.fetched),
        )


def spool_chunk(
    chunk_id: int, chunk: Chunk, source: Source, renderer: Renderer, recipe: Recipe, folder: Path | None
) -> tuple[Spooled, Spooled]:
    """Make the samples of a chunk and write them to its spool file; returns those for training, those for evaluation.

    folder: of the spool; None: the samples are only counted. A chunk with `care` is made record by record.

    Every record is counted among those for training: a record for evaluation is skipped there.
    """
    train, held_out = _Tally(), _Tally()
    prices = recipe.prices or FramePrices()
    work, start = Work(chunks=1), perf_counter()
    begun = step_begun if chunk.care else None
    all_values = chunk_values(chunk, source.columns, begun)
    values, filter_columns = take_filtered(all_values, source.choice.filter, source.name)
    all_copies = copies_of(source.choice, source.name, chunk.first_row, len(chunk.rows))
    taken = _taken(zip(values, all_copies, strict=False), train, begun)
    join = join_of(source.reading.transforms)
    results = (
        _tokenized_together(taken, chunk.source, source, renderer, recipe, 0 if chunk.care else BATCH_BYTES, work)
        if join is None
        else joined_rows(taken, join, chunk.source, source, renderer, recipe)
    )
    with (spool_path(folder, chunk_id) if folder else Path(os.devnull)).open("wb") as file:
        for result in results:
            made = result.made
            if isinstance(made, Reject):
                train.rejects.append((result.rows[0], made))
            elif made.is_for_evaluation:
                for _ in result.rows:
                    train.skip("evaluation")
                held_out.read += len(result.rows)
                held_out.add(made, result.rows, chunk_id, 1, file)
            else:
                train.add(made, result.rows, chunk_id, result.copies, file)
                prices.stored += result.copies * _frame_bytes(made)
    for tally in (train, held_out) if join else ():
        tally.in_order()
    for row, reject in train.rejects:
        train.digest.update(f"{row} {reject.reason}".encode())
    work.samples_s = perf_counter() - start - work.records_s - work.tokens_s
    work.tokenizers = frozenset({renderer.encoder.name})
    return replace(train.spooled(chunk, filter_columns), work=work, prices=prices), held_out.spooled(chunk, frozenset())


def _taken(
    rows: Iterable[tuple[tuple[int, Any], int]], tally: _Tally, begun: Callable[[int], None] | None
) -> Iterator[tuple[Any, int, int]]:
    """(value, row, copies) of the records that are taken; all are counted, and why the others are not.

    begun: called with each row before its sample is made.
    """
    for (row, value), copies in rows:
        tally.read += 1
        if begun:
            begun(row)
        if value is BLANK or value is LEFT_OUT or not copies:
            tally.skip(None if value is BLANK else "filter" if value is LEFT_OUT else "repeat")
        else:
            yield value, row, copies


_Drafted: TypeAlias = "tuple[int, int, Draft | Reject]"
"""Row, copies, what the record becomes."""


def _tokenized_together(
    taken: Iterable[tuple[Any, int, int]],
    source_id: int,
    source: Source,
    renderer: Renderer,
    recipe: Recipe,
    batch_bytes: int,
    work: Work,
) -> Iterator[Joined]:
    """What becomes of each row, as many together as take about batch_bytes. work: what that takes is added."""
    batch, size, start = list[_Drafted](), 0, perf_counter()
    for value, row, copies in taken:
        make = partial(draft_samples, value, row, source_id, source, renderer, recipe)
        draft = attempt(make, value, row, source)
        batch.append((row, copies, draft))
        size += 0 if isinstance(draft, Reject) else draft.bytes
        if size >= batch_bytes:
            work.records_s += perf_counter() - start
            yield from _finished(batch, renderer, recipe, work)
            batch, size, start = [], 0, perf_counter()
    work.records_s += perf_counter() - start
    yield from _finished(batch, renderer, recipe, work)


def _finished(batch: Sequence[_Drafted], renderer: Renderer, recipe: Recipe, work: Work) -> Iterator[Joined]:
    layouts = [layout for *_, draft in batch if isinstance(draft, Draft) for layout in draft.layouts]
    start = perf_counter()
    rendered = render_layouts(renderer, layouts)
    as_bytes = bytes_of(rendered)
    work.tokens_s += perf_counter() - start
    outlined = sum(layout.frame is not None for layout, _ in layouts)
    work.by_outline += outlined
    work.by_template += len(layouts) - outlined
    following = 0
    for row, copies, draft in batch:
        first = following
        made: Made | MadeText | Reject
        try:
            if isinstance(draft, Reject):
                made = draft
            elif draft.is_text and rendered.tokens(first) <= recipe.limits.seq_len:
                following += 1
                made = finish_text(draft, as_bytes, first)
            else:
                following += len(draft.layouts)
                made = finish_samples(draft, map(rendered.rendered, count(first)), renderer, recipe)
        except Reject as reject:
            made = reject
        yield Joined((row,), copies, made)


def _table(entries: Sequence[tuple[int, ...]]) -> npt.NDArray[np.void]:
    table = np.empty(len(entries), SPOOLED)
    for name, column in zip(_NAMES, zip(*entries, strict=True), strict=False):
        table[name] = np.array(column, _FORMATS[name])
    return table


def _each_note(notes: Mapping[tuple[str, ...], int]) -> Counter[str]:
    """Note -> records."""
    counts = Counter[str]()
    for of_record, records in notes.items():
        for note in of_record:
            counts[note] += records
    return counts


def _halves(number: int) -> tuple[int, int]:
    return number >> 64, number & 2**64 - 1


def _frame_bytes(made: Made | MadeText) -> int:
    """Bytes of the frames of videos."""
    if isinstance(made, MadeText):
        return 0
    return sum(media.bytes for sample in made.samples for media in sample.media if media.row)


def _content(made: Made, number: int) -> int:
    """A hash of all that a record says, without its place. number: of the row among joined rows."""
    digest = xxhash.xxh3_128()
    for sample in made.samples:
        for part in (sample.input_ids, sample.targets, sample.target_weights, sample.sample_weights):
            digest.update(part.size.to_bytes(8, "little"))
            digest.update(np.ascontiguousarray(part).data)
        digest.update(sample.media_bytes)
    if number:
        digest.update(f"joined {number}".encode())
    content: int = digest.intdigest()
    return content
