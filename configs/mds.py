"""MosaicML's MDS format, version 2, to the byte: encode, decode and index. No files are opened here but index.json.

    shard file   uint32 n | uint32 offset[n + 1], absolute | JSON of the columns | sample 0 | sample 1 | ...
    sample       uint32 size of every column of variable size | bytes of every column, columns in sorted order
    index.json   {"version": 2, "shards": [{columns, hashes, raw_data: {basename, bytes, hashes}, samples, ...}]}

Source: mosaicml-streaming 0.13, streaming/base/format/mds/{writer,reader,encodings}.py. Integers are little-endian.
tests/configs/test_mds.py holds both directions against that library.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.configs.errors import DatasetError

HASH = "xxh3_64"
INDEX_NAME = "index.json"
MAX_SHARD_BYTES = 2**32 - 1
"""Offsets are uint32: a larger file would wrap them without a word."""

_SHAPE_DTYPES = tuple(np.dtype(name) for name in ("<u1", "<u2", "<u4", "<u8"))


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One shard as index.json names it."""

    name: str
    bytes: int
    samples: int
    xxh3: str
    columns: tuple[tuple[str, str], ...]


def column_size(encoding: str) -> int | None:
    """Bytes of a fixed-size column, None for one of variable size."""
    kind, *args = encoding.split(":")
    if kind == "int":
        return 8
    if kind == "ndarray" and len(args) == 2:
        return int(np.prod([int(n) for n in args[1].split(",")])) * np.dtype(args[0]).itemsize
    return None


def encode_value(encoding: str, value: Any) -> bytes:
    """One column value as MDS stores it. Encodings: bytes, str, int, json, ndarray:DTYPE[:SHAPE]."""
    kind, *args = encoding.split(":")
    if kind == "bytes" and isinstance(value, bytes):
        return value
    if kind == "str" and isinstance(value, str):
        return value.encode()
    if kind == "int" and isinstance(value, int):
        return np.int64(value).tobytes()
    if kind == "json":
        return json.dumps(value).encode()
    if kind == "ndarray" and args and isinstance(value, np.ndarray):
        return _encode_array(encoding, value, args)
    raise TypeError(f"column encoding {encoding!r} cannot hold a {type(value).__name__}")


def decode_value(encoding: str, data: bytes) -> Any:
    """Inverse of encode_value. Arrays are read-only views of `data`."""
    kind, *args = encoding.split(":")
    if kind == "bytes":
        return data
    if kind == "str":
        return data.decode()
    if kind == "int":
        return int(np.frombuffer(data, "<i8")[0])
    if kind == "json":
        return json.loads(data)
    if kind == "ndarray" and args:
        return _decode_array(data, args)
    raise TypeError(f"column encoding {encoding!r} is not one of bytes, str, int, json, ndarray:DTYPE[:SHAPE]")


def encode_sample(columns: Mapping[str, str], values: Mapping[str, Any]) -> bytes:
    """All columns of one sample. `columns` is name -> encoding."""
    data = [encode_value(columns[name], values[name]) for name in sorted(columns)]
    sizes = [len(d) for name, d in zip(sorted(columns), data, strict=True) if column_size(columns[name]) is None]
    return np.array(sizes, "<u4").tobytes() + b"".join(data)


def decode_sample(columns: Mapping[str, str], data: bytes) -> dict[str, Any]:
    """Inverse of encode_sample. Raises ValueError if `data` is not what encode_sample makes for these columns."""
    names = sorted(columns)
    fixed = {name: column_size(columns[name]) for name in names}
    num_variable = sum(size is None for size in fixed.values())
    stated = iter(np.frombuffer(data, "<u4", num_variable).tolist())
    sizes = [size if (size := fixed[name]) is not None else next(stated) for name in names]
    start = 4 * num_variable
    if start + sum(sizes) != len(data):
        raise ValueError(f"sample has {len(data)} bytes, its columns state {start + sum(sizes)}")
    values = {}
    for name, size in zip(names, sizes, strict=True):
        values[name] = decode_value(columns[name], data[start : start + size])
        start += size
    return values


def shard_header(columns: Mapping[str, str], sample_sizes: Sequence[int]) -> bytes:
    """Everything before the first sample. The size limit is part of the stored config."""
    config = json.dumps(_shard_config(columns), sort_keys=True).encode()
    start = 4 + 4 * (len(sample_sizes) + 1) + len(config)
    offsets = start + np.concatenate([[0], np.cumsum(sample_sizes, dtype=np.int64)])
    if offsets[-1] > MAX_SHARD_BYTES:
        raise ValueError(f"a shard of {offsets[-1]} bytes exceeds the format's {MAX_SHARD_BYTES}")
    return np.uint32(len(sample_sizes)).tobytes() + offsets.astype("<u4").tobytes() + config


def shard_offsets(data: bytes) -> npt.NDArray[np.int64]:
    """int64 [n + 1]: where each sample starts in a shard file, the last entry being the file's size."""
    num_samples = int(np.frombuffer(data, "<u4", 1)[0])
    return np.frombuffer(data, "<u4", num_samples + 1, offset=4).astype(np.int64)


def index_json(columns: Mapping[str, str], shards: Sequence[ShardFile]) -> bytes:
    """The bytes of index.json, as MDSWriter writes them."""
    entries = [
        {
            "samples": shard.samples,
            "raw_data": {"basename": shard.name, "bytes": shard.bytes, "hashes": {HASH: shard.xxh3}},
            "zip_data": None,
            **_shard_config(columns),
        }
        for shard in shards
    ]
    return json.dumps({"version": 2, "shards": entries}, sort_keys=True).encode()


def read_index(folder: Path) -> list[ShardFile]:
    """The shards of index.json, checked for shape but not against the files."""
    path = folder / INDEX_NAME
    try:
        index = json.loads(path.read_bytes())
        if index["version"] != 2:
            raise DatasetError(f"{path}: MDS version {index['version']}, expected 2")
        return [_shard_file(path, entry) for entry in index["shards"]]
    except FileNotFoundError:
        raise DatasetError(f"{path} is missing: not a shard folder") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{path} is damaged ({type(error).__name__}: {error}); rebuild the shards") from error


def _shard_config(columns: Mapping[str, str]) -> dict[str, Any]:
    names = sorted(columns)
    return {
        "version": 2,
        "format": "mds",
        "compression": None,
        "hashes": [HASH],
        "size_limit": MAX_SHARD_BYTES,
        "column_names": names,
        "column_encodings": [columns[name] for name in names],
        "column_sizes": [column_size(columns[name]) for name in names],
    }


def _shard_file(path: Path, entry: Mapping[str, Any]) -> ShardFile:
    if entry["compression"] is not None:
        raise DatasetError(f"{path}: shard compression {entry['compression']!r}; expected uncompressed shards")
    raw = entry["raw_data"]
    return ShardFile(
        name=str(raw["basename"]),
        bytes=int(raw["bytes"]),
        samples=int(entry["samples"]),
        xxh3=str(raw["hashes"].get(HASH, "")),
        columns=tuple(zip(entry["column_names"], entry["column_encodings"], strict=True)),
    )


def _encode_array(encoding: str, array: npt.NDArray[Any], args: list[str]) -> bytes:
    if array.dtype != np.dtype(args[0]):
        raise TypeError(f"column encoding {encoding!r} cannot hold dtype {array.dtype}")
    if array.size == 0 or array.ndim == 0:
        raise ValueError(f"column encoding {encoding!r} cannot hold an array of shape {array.shape}")
    if len(args) == 2:
        if array.shape != tuple(int(n) for n in args[1].split(",")):
            raise ValueError(f"column encoding {encoding!r} cannot hold an array of shape {array.shape}")
        return array.tobytes()
    code = next(i for i, dtype in enumerate(_SHAPE_DTYPES) if max(array.shape) < 256**dtype.itemsize)
    head = bytes([array.ndim << 2 | code]) + np.array(array.shape, _SHAPE_DTYPES[code]).tobytes()
    return head + array.tobytes()


def _decode_array(data: bytes, args: list[str]) -> npt.NDArray[Any]:
    dtype = np.dtype(args[0])
    if len(args) == 2:
        return np.frombuffer(data, dtype).reshape([int(n) for n in args[1].split(",")])
    ndim, code = divmod(data[0], 4) if data else (0, 0)
    shape = np.frombuffer(data, _SHAPE_DTYPES[code], ndim, offset=1).tolist() if ndim else []
    start = 1 + ndim * _SHAPE_DTYPES[code].itemsize
    if not shape or 0 in shape or start + math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes do not hold an array of {dtype} with shape {shape}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)
