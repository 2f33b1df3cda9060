"""A data set of very many packs that takes little room.

Every pack of the tables can be read, and has the hash that they tell. But packs are a few tokens long, and only
DISTINCT_SHARDS of the shard files differ: the other files are hard links to these. So the tables, which opening and
ordering read, are of full size, and compress as badly as the tables of a real data set.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import xxhash

from lmms.configs.contract.manifest import (
    PACKS_NAME,
    REJECTS_NAME,
    SAMPLES_NAME,
    file_entry,
    read_manifest,
    write_manifest,
)
from lmms.configs.contract.mds import INDEX_NAME, ShardFile, encode_sample, index_json, shard_header, shard_offsets
from lmms.configs.contract.pack import COLUMNS, PACK_TABLE, Pack
from lmms.configs.stores.store import LocalStore
from lmms.prep.tables import write_columns

DISTINCT_SHARDS = 256

Int64s = npt.NDArray[np.int64]


def write_many_packs(folder: Path, like: Path, num_packs: int, num_shards: int) -> None:
    """Write a shard folder of so many packs, equally many in each shard, for the model of the shard folder `like`.

    The tables of samples and of rejected records are copied from `like`.
    """
    packs_a_shard, rest = divmod(num_packs, num_shards)
    if rest or not packs_a_shard:
        raise ValueError(f"{num_packs} packs in {num_shards} shards, expected as many in each")
    folder.mkdir(parents=True)
    distinct = min(num_shards, DISTINCT_SHARDS)
    lengths = np.random.default_rng(0).integers(8, 64, (distinct, packs_a_shard))
    written = [_write_shard(folder, shard, lengths[shard]) for shard in range(distinct)]
    for shard in range(distinct, num_shards):
        (folder / _name(shard)).hardlink_to(folder / _name(shard % distinct))
    shards = [replace(written[shard % distinct][0], name=_name(shard)) for shard in range(num_shards)]
    (folder / INDEX_NAME).write_bytes(index_json(COLUMNS, shards))
    places, hashes = (np.concatenate([each[i] for each in written]) for i in (1, 2))
    rows = np.arange(num_packs) % (distinct * packs_a_shard)
    _write_packs(folder, like, np.arange(num_packs) // packs_a_shard, places[rows], hashes[rows], lengths.ravel()[rows])
    _write_manifest(folder, like, num_packs)


def _name(shard: int) -> str:
    return f"shard.{shard:05d}.mds"


def _write_shard(folder: Path, shard: int, lengths: Int64s) -> tuple[ShardFile, Int64s, npt.NDArray[np.uint64]]:
    """A shard of packs of these lengths; int64 [packs, 2]: start and end of each pack; uint64 [packs]: its hash."""
    samples = [encode_sample(COLUMNS, _pack(shard, row, n).to_columns()) for row, n in enumerate(lengths.tolist())]
    data = shard_header(COLUMNS, [len(sample) for sample in samples]) + b"".join(samples)
    (folder / _name(shard)).write_bytes(data)
    offsets = shard_offsets(data)
    file = ShardFile(_name(shard), len(data), len(samples), xxhash.xxh3_64_hexdigest(data), tuple(COLUMNS.items()))
    hashes = np.array([xxhash.xxh3_64_intdigest(sample) for sample in samples], np.uint64)
    return file, np.stack([offsets[:-1], offsets[1:]], axis=1), hashes


def _pack(shard: int, row: int, tokens: int) -> Pack:
    """A pack of one conversation, whose tokens but the first are predicted; shard and row make the pack unique."""
    return Pack(
        input_ids=np.arange(row, row + tokens, dtype=np.int32) % 32,  # any vocabulary has these
        cu_seqlens=np.array([0, tokens], np.int32),
        targets=np.array([[1, tokens]], np.int32),
        target_weights=np.ones(1),
        sample_weights=np.ones(1),
        samples=np.array([[0, shard << 32 | row]]),
        media=(),
        media_bytes=b"",
    )


def _write_packs(
    folder: Path, like: Path, shard: Int64s, places: Int64s, hashes: npt.NDArray[np.uint64], tokens: Int64s
) -> None:
    columns = {
        "shard": shard,
        "offset": places[:, 0],
        "bytes": places[:, 1] - places[:, 0],
        "xxh3": hashes,
        "tokens": tokens,
        "target_tokens": tokens - 1,
        "target_weight": tokens - 1.0,
        "conversation_weight": np.ones(len(tokens)),
        "sqrt_weight": np.sqrt(tokens - 1.0),
        "segments": np.ones_like(shard),
        "sum_squared_lengths": tokens**2,
        **dict.fromkeys(("patches", "sum_squared_patches", "media"), np.zeros_like(shard)),
        "source_ids": _each_a_list(np.zeros_like(shard)),
        "source_tokens": _each_a_list(tokens),
    }
    write_columns(folder / PACKS_NAME, PACK_TABLE, columns)


def _each_a_list(values: Int64s) -> pl.Series:
    """Lists of one value each."""
    return pl.Series(values[:, None]).arr.to_list()


def _write_manifest(folder: Path, like: Path, num_packs: int) -> None:
    for name in (SAMPLES_NAME, REJECTS_NAME):
        shutil.copyfile(like / name, folder / name)
    manifest = read_manifest(LocalStore(like))
    files = {name: file_entry(folder / name) for name in (INDEX_NAME, PACKS_NAME, SAMPLES_NAME, REJECTS_NAME)}
    write_manifest(replace(manifest, files=files, counts={**manifest.counts, "packs": num_packs}), folder)
