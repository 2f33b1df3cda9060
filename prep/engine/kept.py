"""What chunks became, kept in a folder: a build that was cut off goes on, and a later build tokenizes only what is new.

A chunk is kept under a hash of all that decides its samples: its rows, the settings of its source, the model's files
and the code of lmms. Two files are kept: KEY.samples as the spool has it, and KEY.npz, written last, with what became
of the rows, behind a hash of this file. The limits of a pack are no part of the key: what was kept under other limits
holds where no limit mattered. Pictures are not hashed; a chunk is read again when a picture's file has another size or
time of change, or is there where none was.
"""

import importlib.metadata
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import xxhash

from lmms.configs.contract.check import PackLimits
from lmms.configs.files import PART_SUFFIX, remove
from lmms.prep.engine.spooled import spool_path
from lmms.prep.engine.store import Spooled
from lmms.prep.engine.work import Work
from lmms.prep.media.read import State, state_of
from lmms.prep.reject import Reject
from lmms.prep.rows.chunk import Chunk, Packed, TarRow
from lmms.prep.sources import Source

Files = Mapping[str, State]
"""Path of a file that was read -> its size and time of change in ns, both -1 where nothing was there."""

_LIBRARIES = ("tokenizers", "jinja2", "numpy", "pillow", "polars", "pyarrow")
_DIGEST = 16
_LIMIT_REJECTS = ("too_long", "too_many_patches")


@dataclass(frozen=True, slots=True)
class Kept:
    """The folder of a store, and what all keys of a build begin with."""

    folder: Path
    common: bytes
    limits: PackLimits


def kept_in(folder: Path, settings: Sequence[Any], limits: PackLimits) -> Kept:
    """The chunks that are kept in this folder, for a build with these settings: values whose repr tells all."""
    digest = xxhash.xxh3_128()
    package = Path(__file__).parents[2]
    for file in sorted(file for name in ("prep", "configs") for file in (package / name).rglob("*.py")):
        digest.update(file.read_bytes())
    for value in (*settings, *(importlib.metadata.version(name) for name in _LIBRARIES)):
        digest.update(f"{value!r}\n".encode())
    return Kept(folder, digest.digest(), limits)


def chunk_key(kept: Kept, chunk: Chunk, source: Source) -> str | None:
    """The key of a chunk; None for rows that are not kept, such as records in memory."""
    if source.beside is not None:
        return None
    digest = xxhash.xxh3_128(kept.common)
    place = (chunk.first_row, chunk.most)
    of_source = (source.name, source.kind, source.reading, source.choice, sorted(source.columns), source.roots)
    digest.update(f"{place} {of_source!r} {sorted(source.chosen_by)}".encode())
    if isinstance(chunk.rows, Packed):
        digest.update(chunk.rows.data)
    elif isinstance(chunk.rows, list):
        for row in chunk.rows:
            if isinstance(row, dict):
                return None
            for part in [row] if isinstance(row, bytes) else _parts(row):
                digest.update(f"{len(part)} ".encode())
                digest.update(part)
    else:
        return None
    return digest.hexdigest()


def take_kept(kept: Kept, key: str, chunk: Chunk, chunk_id: int, spool: Path) -> tuple[Spooled, Spooled] | None:
    """What the chunk became in an earlier build, its samples linked into the spool; None where nothing holds."""
    path = _path(kept, key)
    try:
        stored = path.read_bytes()
        if stored[:_DIGEST] != _digest(key, stored[_DIGEST:]):
            return None
        with np.load(io.BytesIO(stored[_DIGEST:])) as arrays:
            body = json.loads(arrays["body"].tobytes())
            entries = [arrays["train"], arrays["held_out"]]
        samples = path.with_suffix(".samples")
        if not _is_same(body["files"]) or _hash(samples) != body["samples"]:
            return None
        if body["limits"] != asdict(kept.limits) and (body["limits_matter"] or not _fit(entries, kept.limits)):
            return None
        _same_file(samples, spool_path(spool, chunk_id), os.symlink)
        path.touch()
    except OSError:  # not kept
        return None
    for part in entries:
        part["chunk"], part["source"] = chunk_id, chunk.source
    train, held_out = (_spooled(each, part, chunk) for each, part in zip(body["halves"], entries, strict=True))
    return replace(train, work=Work(chunks=1, kept=1)), held_out


def keep(kept: Kept, key: str, result: tuple[Spooled, Spooled], chunk_id: int, spool: Path, files: Files) -> None:
    """Keep what a chunk became. Nothing is kept where the disk is full: the build goes on without."""
    if any(half.fetched for half in result):
        return
    path = _path(kept, key)
    samples = spool_path(spool, chunk_id)
    rows = [entry.item() for half in result for entry in half.samples[["row", "copy"]]]
    body = {
        "limits": asdict(kept.limits),
        "limits_matter": len(set(rows)) < len(rows)
        or any(half.cut_turns or any(reject.reason in _LIMIT_REJECTS for _, reject in half.rejects) for half in result),
        "files": files,
        "samples": _hash(samples),
        "halves": [_body(half) for half in result],
    }
    data, arrays = np.frombuffer(json.dumps(body).encode(), np.uint8), io.BytesIO()
    np.savez(arrays, body=data, train=result[0].samples, held_out=result[1].samples)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replaced(path.with_suffix(".samples")) as part:
            _same_file(samples, part, shutil.copyfile)
        with _replaced(path) as part:
            part.write_bytes(_digest(key, arrays.getvalue()) + arrays.getvalue())


@contextmanager
def _replaced(file: Path) -> Iterator[Path]:
    """Yields the place for what becomes `file` at the end of the block; other builds may do the same at once."""
    part = file.with_name(f"{file.name}.{uuid4().hex[:8]}{PART_SUFFIX}")
    try:
        yield part
        part.replace(file)
    finally:
        remove(part)


def _body(half: Spooled) -> dict[str, Any]:
    return {
        "read": half.read,
        "skipped": half.skipped,
        "rejects": [(row, reject.reason, reject.message, reject.place) for row, reject in half.rejects],
        "notes": list(half.notes.items()),
        "cut_turns": half.cut_turns,
        "digest": half.digest.hex(),
        "filter_columns": sorted(half.filter_columns),
    }


def _spooled(body: Mapping[str, Any], entries: Any, chunk: Chunk) -> Spooled:
    return Spooled(
        source=chunk.source,
        rows=len(chunk.rows),
        read=body["read"],
        skipped=body["skipped"],
        samples=entries,
        rejects=[(row, Reject(reason, message, place)) for row, reason, message, place in body["rejects"]],
        notes=Counter(dict(body["notes"])),
        cut_turns=body["cut_turns"],
        digest=bytes.fromhex(body["digest"]),
        file_bytes=chunk.file_bytes,
        filter_columns=frozenset(body["filter_columns"]),
    )


def _parts(row: TarRow) -> list[bytes]:
    members = [part for name, data in (*row.texts.items(), *row.media.items()) for part in (name.encode(), data)]
    return [row.key.encode(), row.record or b"", *members]


def _fit(entries: Sequence[Any], limits: PackLimits) -> bool:
    return all(
        int(part["tokens"].max(initial=0)) <= limits.seq_len
        and int((part["patches"] + part["sound_positions"]).max(initial=0)) <= limits.max_patches
        for part in entries
    )


def _is_same(files: Files) -> bool:
    return all(state_of(Path(name)) == tuple(state) for name, state in files.items())


def _digest(key: str, content: bytes) -> bytes:
    """Hash of what a file of this key holds, at its begin: damage, and a file under another name, are seen by it."""
    return xxhash.xxh3_128_digest(key.encode() + content)


def _hash(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _same_file(file: Path, name: Path, otherwise: Callable[[Path, Path], object]) -> None:
    """The same file under another name, which is replaced. otherwise: what to do on two different disks."""
    remove(name)  # a chunk that is made a second time was linked before
    try:
        os.link(file, name)
    except OSError:
        otherwise(file.resolve(), name)


def _path(kept: Kept, key: str) -> Path:
    return kept.folder / key[:2] / f"{key}.npz"
