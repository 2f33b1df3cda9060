"""Packs from shard folders: the sidecar table, and one pack by its place.

Every read is checked against the pack's hash, and every fault stops the run by name: a stream that ends early, or
hands out half a pack, trains on something else without a word. Nothing heavy is loaded: `lmms inspect` reads packs too.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from lmms.configs.contract.manifest import PACKS_NAME, Dataset
from lmms.configs.contract.mds import ShardFile, decode_sample
from lmms.configs.contract.pack import COLUMNS, SOUND_TABLE, Pack
from lmms.configs.errors import DatasetError, refuse_file_limit
from lmms.configs.stores.store import LocalStore
from lmms.train.data.cache import forget, read_shard, read_table_file

if TYPE_CHECKING:
    import polars as pl

_MAX_OPEN_FILES = 256
"""Shards held open at a time; a data set may have more than a process may open (often 1,024)."""


class Place(NamedTuple):
    """The place of one pack: all that a process without the tables needs to read it."""

    set: int
    """Number of the pack's data set among the data sets of the reader."""
    pack: int
    """Number of the pack in its data set."""
    shard: int
    offset: int
    bytes: int
    xxh3: int


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sidecar:
    """packs.parquet in memory but for the sources: a column of contract.PACK_TABLE each, [packs] in shard order."""

    shard: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    bytes: npt.NDArray[np.int64]
    xxh3: npt.NDArray[np.uint64]
    tokens: npt.NDArray[np.int32]
    target_tokens: npt.NDArray[np.int32]
    target_weight: npt.NDArray[np.float64]
    conversation_weight: npt.NDArray[np.float64]
    sqrt_weight: npt.NDArray[np.float64]
    segments: npt.NDArray[np.int32]
    sum_squared_lengths: npt.NDArray[np.int64]
    patches: npt.NDArray[np.int32]
    sum_squared_patches: npt.NDArray[np.int64]
    media: npt.NDArray[np.int32]
    sound_tokens: npt.NDArray[np.int32]
    """0 where the model hears nothing, as the next."""
    sound_positions: npt.NDArray[np.int32]
    sum_squared_sounds: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)

    def place(self, pack: int, set: int = 0) -> Place:
        """The place of a pack, for a reader that has its data set as number `set`. DatasetError without such a pack."""
        if not 0 <= pack < len(self):
            raise DatasetError(f"there is no pack {pack}; expected 0 to {len(self) - 1}")
        shard, offset, size = int(self.shard[pack]), int(self.offset[pack]), int(self.bytes[pack])
        return Place(set, pack, shard, offset, size, int(self.xxh3[pack]))


def read_table(dataset: Dataset, name: str) -> "pl.DataFrame":
    """One of the Parquet tables of a data set. DatasetError unless the table is the manifest's."""
    return _columns(_table_file(dataset, name))


def read_sidecar(dataset: Dataset) -> Sidecar:
    """The sidecar of a data set. DatasetError unless the sidecar is the manifest's and its packs fill the shards."""
    file = _table_file(dataset, PACKS_NAME)
    # Column by column: a column comes in pieces, and joining all columns at once would take the room of two tables.
    hears = dataset.manifest.audio is not None
    names = [field.name for field in fields(Sidecar) if hears or field.name not in SOUND_TABLE]
    columns = {name: _columns(file, name)[name].to_numpy() for name in names}
    if not hears:
        columns |= {name: np.zeros(len(columns["tokens"]), kind) for name, kind in SOUND_TABLE.items()}
    sidecar = Sidecar(**columns)
    _check_places(f"{dataset.where}/{PACKS_NAME}", sidecar, dataset.shards)
    return sidecar


def read_sources(dataset: Dataset) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(starts int64 [packs + 1], ids int32, tokens int32): pack i has tokens[j] of the source ids[j] of the manifest,
    starts[i] <= j < starts[i + 1]. DatasetError unless the table is the manifest's."""
    table = _columns(_table_file(dataset, PACKS_NAME), "source_ids", "source_tokens")
    ids, tokens = (table[name].explode(empty_as_null=False).to_numpy() for name in ("source_ids", "source_tokens"))
    return np.append(0, table["source_ids"].list.len().to_numpy().cumsum(dtype=np.int64)), ids, tokens


class PackReader:
    """Packs of some data sets by their places, each checked against its hash. Pickled without its open files."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        self._datasets = tuple(datasets)
        self._files: dict[tuple[int, int], int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def read(self, place: Place) -> Pack:
        """The pack at a place. DatasetError if the pack cannot be read exactly as it was written."""
        return Pack.from_columns(decode_sample(COLUMNS, self.read_bytes(place)))

    def read_bytes(self, place: Place) -> bytes:
        """The pack at a place as it is stored, checked."""
        data = self._data(place)
        if len(data) == place.bytes and xxh3_64_intdigest(data) == place.xxh3:
            return data
        dataset = self._datasets[place.set]
        if not isinstance(dataset.store, LocalStore):
            forget(dataset, place.shard)
            data = self._data(place)
        if len(data) != place.bytes:
            what = f"has {len(data)} bytes, expected {place.bytes}: truncated"
        elif xxh3_64_intdigest(data) != place.xxh3:
            what = "is damaged: its hash is not the sidecar's"
        else:
            return data
        raise DatasetError(f"{self._name(place)} {what}; copy the shard again or rebuild")

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _data(self, place: Place) -> bytes:
        """The bytes at a place, not checked."""
        try:
            file = self._files.get((place.set, place.shard))
            if file is None:
                dataset = self._datasets[place.set]
                if not isinstance(dataset.store, LocalStore):
                    return read_shard(dataset, place.shard, place.offset, place.bytes)
                file = self._open(place, dataset.store)
            return os.pread(file, place.bytes, place.offset)
        except OSError as error:
            refuse_file_limit(error)
            what = f"cannot be read ({error.strerror}); copy the shard again or rebuild"
            raise DatasetError(f"{self._name(place)} {what}") from error

    def _open(self, place: Place, store: LocalStore) -> int:
        if len(self._files) >= _MAX_OPEN_FILES:
            os.close(self._files.pop(next(iter(self._files))))
        path = store.folder / self._datasets[place.set].shards[place.shard].name
        file = self._files[place.set, place.shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return file

    def _name(self, place: Place) -> str:
        dataset = self._datasets[place.set]
        return f"{dataset.where}/{dataset.shards[place.shard].name}: pack {place.pack} at byte {place.offset}"


def _table_file(dataset: Dataset, name: str) -> bytes:
    data = read_table_file(dataset, name)
    if xxh3_64_hexdigest(data) != dataset.manifest.files[name]["xxh3"]:
        raise DatasetError(
            f"{dataset.where}/{name} is damaged: its hash is not the manifest's; copy it again or rebuild the shards"
        )
    return data


def _columns(file: bytes, *names: str) -> "pl.DataFrame":
    """Some columns of a Parquet file, or all of them."""
    import polars as pl  # takes half a second, which only readers of a table need to spend

    return pl.read_parquet(file, columns=list(names) or None)


def _check_places(path: str, sidecar: Sidecar, shards: Sequence[ShardFile]) -> None:
    """Packs stand in the shards in order and end to end, the last pack up to the end of the file."""
    if not np.array_equal(
        sidecar.shard, np.repeat(np.arange(len(shards), dtype=np.int32), [s.samples for s in shards])
    ):
        raise DatasetError(f"{path} does not have the packs of index.json, shard by shard; rebuild the shards")
    last = np.flatnonzero(np.diff(sidecar.shard, append=np.int32(len(shards))))
    expected = np.append(sidecar.offset[1:], 0)
    expected[last] = np.array([s.bytes for s in shards], np.int64)[sidecar.shard[last]]
    ends = sidecar.offset + sidecar.bytes
    wrong = np.flatnonzero(ends != expected)
    if len(wrong):
        i = int(wrong[0])
        raise DatasetError(f"{path}: pack {i} ends at byte {ends[i]}, expected {expected[i]}; rebuild the shards")


class Request(NamedTuple):
    """One forward pass of one rank."""

    places: tuple[Place, ...]
    """Places of the packs of the pass."""
    counts: bool
    """False for a pass that only keeps the rank in step with the others: its targets weigh 0."""
