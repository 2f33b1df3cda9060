"""Planned packs -> shard files and their rows of packs.parquet. One worker writes a shard, however many there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from lmms.configs.contract.check import PackLimits, check_pack
from lmms.configs.contract.loss_weight import total_weights
from lmms.configs.contract.mds import MAX_SHARD_BYTES, ShardFile, encode_sample, shard_header, shard_offsets
from lmms.configs.contract.pack import COLUMNS, Pack, join_packs
from lmms.configs.errors import BuildError
from lmms.prep.engine.store import read_spooled


@dataclass(frozen=True, slots=True)
class WrittenShard:
    """A shard file, and its packs' rows of packs.parquet."""

    file: ShardFile
    rows: list[dict[str, Any]]


def shard_bounds(pack_bytes: npt.NDArray[np.int64], shard_bytes: int) -> list[int]:
    """[0, ..., packs]: where to cut so that a shard ends at the pack that reaches shard_bytes."""
    if pack_bytes.size and int(pack_bytes.max()) + shard_bytes > MAX_SHARD_BYTES:
        raise BuildError(
            f"a pack of {int(pack_bytes.max())} bytes does not fit a shard file of at most {MAX_SHARD_BYTES}; "
            "set a smaller seq_len or max_patches"
        )
    bounds, size = [0], 0
    for i, num_bytes in enumerate(pack_bytes.tolist()):
        size += num_bytes
        if size >= shard_bytes or i == len(pack_bytes) - 1:
            bounds.append(i + 1)
            size = 0
    return bounds


def write_shard(
    shard: int, packs: Sequence[npt.NDArray[np.void]], spool: Path, out: Path, limits: PackLimits
) -> WrittenShard:
    """Write shard.NNNNN.mds; packs[i] holds the spool entries of its i-th pack."""
    encoded, rows = [], []
    for entries in packs:
        pack = join_packs(read_spooled(spool, entries))
        faults = check_pack(pack, limits)
        if faults:
            raise BuildError(f"shard {shard}: a pack breaks the contract: {'; '.join(faults)}. This is a bug of lmms")
        encoded.append(encode_sample(COLUMNS, pack.to_columns()))
        rows.append(_pack_row(shard, pack, encoded[-1]))
    data = shard_header(COLUMNS, [len(e) for e in encoded]) + b"".join(encoded)
    for row, offset in zip(rows, shard_offsets(data)[:-1].tolist(), strict=True):
        row["offset"] = offset
    name = f"shard.{shard:05d}.mds"
    (out / name).write_bytes(data)
    file = ShardFile(name, len(data), len(encoded), xxhash.xxh3_64_hexdigest(data), tuple(sorted(COLUMNS.items())))
    return WrittenShard(file, rows)


def _pack_row(shard: int, pack: Pack, data: bytes) -> dict[str, Any]:
    spans = pack.targets[:, 1] - pack.targets[:, 0]
    lengths = pack.lengths.astype(np.int64)
    sources = sorted(set(pack.samples[:, 0].tolist()))
    return {
        "shard": shard,
        "bytes": len(data),
        "xxh3": xxhash.xxh3_64_intdigest(data),
        "tokens": len(pack.input_ids),
        "target_tokens": int(spans.sum()),
        **total_weights(pack),
        "segments": len(lengths),
        "sum_squared_lengths": int((lengths**2).sum()),
        "patches": pack.patches,
        "sum_squared_patches": pack.sum_squared_patches,
        "media": len(pack.media),
        "source_ids": sources,
        "source_tokens": [int(lengths[pack.samples[:, 0] == source].sum()) for source in sources],
    }
