"""Packs out of a shard folder: the sidecar table, and one pack by number.

Every read is checked against the pack's own hash, and every fault stops the run by name: a stream that ends early,
or hands out half a pack, trains on something else without a word. Nothing heavy is loaded: `lmms inspect` reads packs
too.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from lmms.configs.contract import COLUMNS, PACK_TABLE, Pack
from lmms.configs.errors import DatasetError
from lmms.configs.manifest import PACKS_NAME, Dataset
from lmms.configs.mds import ShardFile, decode_sample

_MAX_OPEN_FILES = 256
"""Shards held open at a time; a data set may have more than a process may open (often 1,024)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sidecar:
    """packs.parquet in memory: a column of contract.PACK_TABLE each, [packs] in shard order.

    The sources of pack i are source_ids[source_starts[i] : source_starts[i + 1]], and so are their tokens.
    """

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    xxh3: npt.NDArray[np.uint64]
    tokens: npt.NDArray[np.int32]
    target_tokens: npt.NDArray[np.int32]
    target_weight: npt.NDArray[np.float64]
    segments: npt.NDArray[np.int32]
    sum_squared_lengths: npt.NDArray[np.int64]
    patches: npt.NDArray[np.int32]
    media: npt.NDArray[np.int32]
    source_ids: npt.NDArray[np.int32]
    source_tokens: npt.NDArray[np.int32]
    source_starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)


def read_table(dataset: Dataset, name: str) -> pa.Table:
    """One of the Parquet tables of a data set. DatasetError unless it is the manifest's."""
    path = dataset.folder / name
    data = path.read_bytes()
    if xxhash.xxh3_64_hexdigest(data) != dataset.manifest.files[name]["xxh3"]:
        raise DatasetError(f"{path} is damaged: its hash is not the manifest's; copy it again or rebuild the shards")
    return pq.read_table(pa.BufferReader(data))


def read_sidecar(dataset: Dataset) -> Sidecar:
    """The sidecar of a data set. DatasetError unless it is the manifest's and its packs fill the shards exactly."""
    path = dataset.folder / PACKS_NAME
    table = read_table(dataset, PACKS_NAME)
    columns = {name: table[name].combine_chunks() for name in PACK_TABLE}
    source_starts = columns["source_ids"].offsets.to_numpy().astype(np.int64)
    for name in ("source_ids", "source_tokens"):
        columns[name] = columns[name].values
    sidecar = Sidecar(**{name: column.to_numpy() for name, column in columns.items()}, source_starts=source_starts)
    _check_places(path, sidecar, dataset.shards)
    return sidecar


class PackReader:
    """Packs by number, each checked against its hash. Pickled without its open files."""

    def __init__(self, dataset: Dataset, sidecar: Sidecar) -> None:
        self._paths = [dataset.folder / shard.name for shard in dataset.shards]
        self._shard, self._offset, self._bytes, self._xxh3 = sidecar.shard, sidecar.offset, sidecar.bytes, sidecar.xxh3
        self._files: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def read(self, pack: int) -> Pack:
        """Pack number `pack` of the sidecar. DatasetError if it cannot be read exactly as it was written."""
        if not 0 <= pack < len(self._shard):
            raise DatasetError(f"there is no pack {pack}; expected 0 to {len(self._shard) - 1}")
        shard, offset, size = int(self._shard[pack]), int(self._offset[pack]), int(self._bytes[pack])
        place = f"{self._paths[shard]}: pack {pack} at byte {offset}"
        try:
            data = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise DatasetError(f"{place} cannot be read ({error.strerror}); copy the shard again or rebuild") from error
        if len(data) != size:
            raise DatasetError(
                f"{place} has {len(data)} bytes, expected {size}: truncated; copy the shard again or rebuild"
            )
        if xxhash.xxh3_64_intdigest(data) != self._xxh3[pack]:
            raise DatasetError(f"{place} is damaged: its hash is not the sidecar's; copy the shard again or rebuild")
        return Pack.from_columns(decode_sample(COLUMNS, data))

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= _MAX_OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]


def _check_places(path: Path, sidecar: Sidecar, shards: Sequence[ShardFile]) -> None:
    """Packs stand in the shards in order and end to end, the last one up to the end of the file."""
    shard = np.repeat(np.arange(len(shards)), [s.samples for s in shards])
    if not np.array_equal(sidecar.shard, shard):
        raise DatasetError(f"{path} does not have the packs of index.json, shard by shard; rebuild the shards")
    sizes = np.array([s.bytes for s in shards], np.int64)[shard]
    is_last = np.diff(shard, append=len(shards)) > 0
    expected = np.where(is_last, sizes, np.append(sidecar.offset[1:], 0))
    wrong = np.flatnonzero(sidecar.offset + sidecar.bytes != expected)
    if len(wrong):
        i = int(wrong[0])
        end = sidecar.offset[i] + sidecar.bytes[i]
        raise DatasetError(f"{path}: pack {i} ends at byte {end}, expected {expected[i]}; rebuild the shards")
