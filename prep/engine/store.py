"""Chunk -> spool file of its samples, in a worker process; and samples read back, by offset, when packs are written."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from lmms.configs.contract.mds import decode_sample, encode_sample
from lmms.configs.contract.pack import COLUMNS, Pack
from lmms.prep.reject import Reject
from lmms.prep.render.render import Renderer
from lmms.prep.rows.chunk import Chunk
from lmms.prep.samples import Made, Recipe, make_samples
from lmms.prep.sources import BLANK, Source, chunk_values

SPOOLED = np.dtype(
    {
        "names": ["source", "row", "tokens", "target_tokens", "patches", "media", "chunk", "offset", "bytes"],
        "formats": ["i4", "i8", "i4", "i4", "i4", "i4", "i4", "i8", "i8"],
    }
)
"""One entry a sample: all that the plan needs, and where the bytes of the sample are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spooled:
    """Result of the rows of one chunk: read == records with samples + len(rejects) + skipped."""

    source: int
    read: int
    skipped: int
    samples: npt.NDArray[np.void]
    rejects: list[tuple[int, Reject]]
    notes: Counter[str]
    cut_turns: int
    """Turns that were left out of records that are too long."""
    digest: bytes
    file_bytes: int


def spool_path(folder: Path, chunk: int) -> Path:
    """The file with the samples of this chunk."""
    return folder / f"{chunk:06d}.samples"


def spool_chunk(
    chunk_id: int, chunk: Chunk, source: Source, renderer: Renderer, recipe: Recipe, folder: Path
) -> Spooled:
    """Make the samples of a chunk and write them to its spool file."""
    entries: list[tuple[int, ...]] = []
    rejects: list[tuple[int, Reject]] = []
    notes: Counter[str] = Counter()
    read = skipped = cut_turns = 0
    digest = xxhash.xxh3_128()
    with spool_path(folder, chunk_id).open("wb") as file:
        for row, value in chunk_values(chunk, source.columns):
            read += 1
            if value is BLANK:
                skipped += 1
                continue
            made = _made(value, row, chunk.source, source, renderer, recipe)
            if isinstance(made, Reject):
                rejects.append((row, made))
                continue
            notes.update(made.notes)
            cut_turns += made.cut_turns
            for sample in made.samples:
                data = encode_sample(COLUMNS, sample.to_columns())
                spans = sample.targets[:, 1] - sample.targets[:, 0]
                counts = (len(sample.input_ids), int(spans.sum()), sample.patches, len(sample.media))
                entries.append((chunk.source, row, *counts, chunk_id, file.tell(), len(data)))
                file.write(data)
                digest.update(data)
    for row, reject in rejects:
        digest.update(f"{row} {reject.reason}".encode())
    return Spooled(
        source=chunk.source,
        read=read,
        skipped=skipped,
        samples=np.array(entries, SPOOLED),
        rejects=rejects,
        notes=notes,
        cut_turns=cut_turns,
        digest=digest.digest(),
        file_bytes=chunk.file_bytes,
    )


def _made(value: object, row: int, source_id: int, source: Source, renderer: Renderer, recipe: Recipe) -> Made | Reject:
    if isinstance(value, Reject):
        return value
    try:
        return make_samples(value, row, source_id, source, renderer, recipe)
    except Reject as reject:
        return reject


def read_spooled(folder: Path, entries: npt.NDArray[np.void]) -> list[Pack]:
    """The samples of these entries, in their order."""
    samples = []
    for entry in entries:
        descriptor = os.open(spool_path(folder, int(entry["chunk"])), os.O_RDONLY)
        try:
            data = os.pread(descriptor, int(entry["bytes"]), int(entry["offset"]))
        finally:
            os.close(descriptor)
        samples.append(Pack.from_columns(decode_sample(COLUMNS, data)))
    return samples
