"""What is in a store of chunks, and what of it is deleted: what was not used for long, or does not fit a size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmms.configs.errors import SourceError
from lmms.configs.files import PART_SUFFIX, remove


@dataclass(frozen=True, slots=True)
class KeptChunk:
    """A chunk in a store."""

    file: Path
    bytes: int
    """Size of both of its files."""
    used: float
    """Time of its last use, in seconds since 1970."""


def kept_chunks(store: Path) -> list[KeptChunk]:
    """All chunks of a store, the last used first. SourceError for a folder that is no store."""
    files = sorted(store.glob("??/*.npz"))
    if not files:
        state = "holds no chunks" if store.is_dir() else "is no folder"
        raise SourceError(f"{store} {state}; expected the folder of the setting `store` of a build")
    chunks = []
    for file in files:
        samples, status = file.with_suffix(".samples"), file.stat()
        size = samples.stat().st_size if samples.exists() else 0
        chunks.append(KeptChunk(file, status.st_size + size, status.st_mtime))
    return sorted(chunks, key=lambda chunk: -chunk.used)


def to_delete(chunks: Sequence[KeptChunk], used_before: float | None, most_bytes: int | None) -> list[KeptChunk]:
    """The chunks last used before a time, and the longest unused beyond a size of the store."""
    kept, deleted, size = list[KeptChunk](), list[KeptChunk](), 0
    for chunk in chunks:
        size += chunk.bytes
        is_old = used_before is not None and chunk.used < used_before
        (deleted if is_old or (most_bytes is not None and size > most_bytes) else kept).append(chunk)
    return deleted


def delete(store: Path, chunks: Sequence[KeptChunk]) -> None:
    """Delete these chunks, and what a build that was killed left half-written."""
    for chunk in chunks:
        remove(chunk.file)
        remove(chunk.file.with_suffix(".samples"))
    for leftover in store.glob(f"??/*{PART_SUFFIX}"):
        remove(leftover)
