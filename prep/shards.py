"""Packs -> shard files and their rows of packs.parquet. One process writes a whole shard."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import xxhash

from lmms.configs.contract.check import PackLimits, check_pack
from lmms.configs.contract.mds import MAX_SHARD_BYTES, ShardFile, encode_sample, shard_header, shard_offsets
from lmms.configs.contract.pack import COLUMNS, Pack
from lmms.configs.contract.sidecar import pack_row
from lmms.configs.errors import BuildError
from lmms.prep.output import Output

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard file, its packs' rows of packs.parquet, and how many videos and sounds they have."""

    file: ShardFile
    rows: list[dict[str, Any]]
    videos: int
    sounds: int
    seconds: float
    """The length of all sounds together."""


def cut_shards(packs: Iterable[T], size_of: Callable[[T], int], shard_bytes: int) -> Iterator[list[T]]:
    """The packs of each shard: a shard ends at the pack that reaches shard_bytes, or at the last pack.

    size_of: about the bytes that a pack takes. BuildError for a pack that a shard file may not be able to hold.
    """
    shard, size = list[T](), 0
    for pack in packs:
        pack_bytes = size_of(pack)
        if pack_bytes + shard_bytes > MAX_SHARD_BYTES:
            raise BuildError(
                f"a pack of {pack_bytes} bytes does not fit a shard file of at most {MAX_SHARD_BYTES}; "
                "set a smaller seq_len or max_patches"
            )
        shard.append(pack)
        size += pack_bytes
        if size >= shard_bytes:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def write_shard(shard: int, packs: Iterable[Pack], out: Output, limits: PackLimits) -> WrittenShard:
    """Write shard.NNNNN.mds. BuildError for a pack that breaks the contract."""
    encoded, rows, videos = list[bytes](), list[dict[str, Any]](), 0
    sounds, seconds = 0, 0.0
    for i, pack in enumerate(packs):
        faults = check_pack(pack, limits)
        if faults:
            raise BuildError(f"pack {i} of shard {shard} breaks the contract: {'; '.join(faults)}")
        encoded.append(encode_sample(COLUMNS, pack.to_columns()))
        stored = {"shard": shard, "bytes": len(encoded[-1]), "xxh3": xxhash.xxh3_64_intdigest(encoded[-1])}
        rows.append(stored | pack_row(pack, limits.audio is not None))
        videos += sum(m.row is not None and m.row.number == 0 for m in pack.media)
        heard = [m.sound.samples for m in pack.media if m.sound]
        sounds += len(heard)
        seconds += sum(heard) / limits.audio.sample_rate if limits.audio else 0
    data = b"".join([shard_header(COLUMNS, [len(e) for e in encoded]), *encoded])
    for row, offset in zip(rows, shard_offsets(data)[:-1].tolist(), strict=True):
        row["offset"] = offset
    name = f"shard.{shard:05d}.mds"
    out.write(name, data)
    file = ShardFile(name, len(data), len(encoded), xxhash.xxh3_64_hexdigest(data), tuple(sorted(COLUMNS.items())))
    return WrittenShard(file, rows, videos, sounds, seconds)
