"""Samples read back from the spool, by offset, and joined to packs."""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from struct import Struct

import numpy as np
import numpy.typing as npt
import xxhash

from lmms.configs.contract.mds import decode_sample
from lmms.configs.contract.pack import COLUMNS, Pack, join_packs
from lmms.configs.errors import BuildError

HASH_BYTES = 8
"""Behind each sample in the spool: its file may be one of a store, which others can write to."""

_SIZES = Struct(f"<{len(COLUMNS)}I")
"""The sizes of the columns of a stored sample, in the order of their names: each column has its array at its end."""


def spool_path(folder: Path, chunk: int) -> Path:
    """The file with the samples of this chunk."""
    return folder / f"{chunk:06d}.samples"


def read_pack(folder: Path, entries: npt.NDArray[np.void]) -> Pack:
    """The samples of these entries (SPOOLED), in their order, as one pack."""
    samples = _stored_samples(folder, entries)
    if not entries["media"].any():
        return _joined_texts(samples, entries)
    packs = [Pack.from_columns(decode_sample(COLUMNS, data)) for data in samples]
    return replace(join_packs(packs), samples=_places(entries))


def _joined_texts(samples: list[bytes], entries: npt.NDArray[np.void]) -> Pack:
    """The pack of samples without media: the arrays of all are cut out and joined, and no sample is an object."""
    ids, sample_weights, weights, targets = list[bytes](), list[bytes](), list[bytes](), list[bytes]()
    spans = list[int]()
    for data, tokens in zip(samples, entries["tokens"].tolist(), strict=True):
        cuts, size, media, media_bytes, weight, row, target_weights, _ = _SIZES.unpack_from(data)
        end = _SIZES.size + cuts + size
        ids.append(data[end - 4 * tokens : end])
        end += media + media_bytes + weight
        sample_weights.append(data[end - 8 : end])
        end += row + target_weights
        number = (target_weights - 2) // 8  # before the numbers stand two to five bytes
        spans.append(number)
        weights.append(data[end - 8 * number : end])
        targets.append(data[-8 * number :])
    cuts_of_all = np.zeros(len(samples) + 1, np.int32)
    np.cumsum(entries["tokens"], out=cuts_of_all[1:])
    of_targets = np.frombuffer(b"".join(targets), "<i4").reshape(-1, 2)
    return Pack(
        input_ids=np.frombuffer(b"".join(ids), "<i4"),
        cu_seqlens=cuts_of_all,
        targets=of_targets + np.repeat(cuts_of_all[:-1], spans)[:, None],
        target_weights=np.frombuffer(b"".join(weights), "<f8"),
        sample_weights=np.frombuffer(b"".join(sample_weights), "<f8"),
        samples=_places(entries),
        media=(),
        media_bytes=b"",
    )


def _places(entries: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """int64 [samples, 2]: number of the source, and row. The spool has the row alone."""
    return np.stack([entries["source"].astype(np.int64), entries["row"]], axis=1)


def _stored_samples(folder: Path, entries: npt.NDArray[np.void]) -> list[bytes]:
    """The bytes of each sample, checked. BuildError for bytes that the build did not write."""
    samples = [b""] * len(entries)
    chunks = entries["chunk"].tolist()
    places = list(zip(entries["offset"].tolist(), entries["bytes"].tolist(), strict=True))
    for chunk, numbers in groupby(sorted(range(len(chunks)), key=chunks.__getitem__), chunks.__getitem__):
        path = spool_path(folder, chunk)
        in_chunk = list(numbers)
        for number, stored in zip(in_chunk, _read(path, [places[number] for number in in_chunk]), strict=True):
            samples[number] = stored[:-HASH_BYTES]
            if xxhash.xxh3_64_digest(samples[number]) != stored[-HASH_BYTES:]:
                raise BuildError(
                    f"{path.resolve()} was changed or deleted while the build ran; run the same command again, and if"
                    " this comes again, look for damage of the disk"
                )
    return samples


def _read(path: Path, places: list[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes at some places of a file, with their hashes; fewer at its end, none where a link leads nowhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield from (b"" for _ in places)
        return
    try:
        for offset, size in places:
            yield os.pread(descriptor, size + HASH_BYTES, offset)
    finally:
        os.close(descriptor)
