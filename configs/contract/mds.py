"""MosaicML's MDS format, version 2, to the byte: encode, decode and index. No files are opened here.

    shard file   uint32 n | uint32 offset[n + 1], absolute | JSON of the columns | sample 0 | sample 1 | ...
    sample       uint32 size of every column of variable size | bytes of every column, columns in sorted order
    index.json   {"version": 2, "shards": [{columns, hashes, raw_data: {basename, bytes, hashes}, samples, ...}]}

Source: mosaicml-streaming 0.13, streaming/base/format/mds/{writer,reader,encodings}.py. Integers are little-endian.
The tests compare both directions with that library.
"""

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from lmms.configs.errors import DatasetError
from lmms.configs.words import type_name

HASH = "xxh3_64"
INDEX_NAME = "index.json"
MAX_SHARD_BYTES = 2**32 - 1
"""Offsets are uint32: in a larger file they would wrap without an error."""

_Encode = Callable[[Any], bytes]
_Decode = Callable[[bytes, int, int], Any]
"""(sample, start, end of a column in it) -> value."""
_SHAPES = tuple(struct.Struct("<" + (head >> 2) * "BHIQ"[head & 3]) for head in range(256))
"""Layout of a stored array shape, by the byte before the shape."""


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One shard, as an entry of index.json."""

    name: str
    bytes: int
    samples: int
    xxh3: str
    columns: tuple[tuple[str, str], ...]


def column_size(encoding: str) -> int | None:
    """Bytes of a fixed-size column, None for a column of variable size."""
    kind, *args = encoding.split(":")
    if kind == "int":
        return 8
    if kind == "ndarray" and len(args) == 2:
        return int(np.prod([int(n) for n in args[1].split(",")])) * np.dtype(args[0]).itemsize
    return None


def encode_value(encoding: str, value: Any) -> bytes:
    """One column value as MDS stores it. Encodings: bytes, str, int, json, ndarray:DTYPE[:SHAPE]."""
    return _encoder(encoding)(value)


def encode_sample(columns: Mapping[str, str], values: Mapping[str, Any]) -> bytes:
    """All columns of one sample. `columns` is name -> encoding."""
    encoders, stated = _encoders(tuple(columns.items()))
    data = [encode(values[name]) for name, encode, _ in encoders]
    sizes = [len(d) for d, (*_, is_stated) in zip(data, encoders, strict=True) if is_stated]
    return stated.pack(*sizes) + b"".join(data)


def decode_sample(columns: Mapping[str, str], data: bytes) -> dict[str, Any]:
    """Inverse of encode_sample. Raises ValueError if `data` is not what encode_sample makes for these columns.

    Arrays are read-only views of `data`.
    """
    layout, stated = _layout(tuple(columns.items()))
    if len(data) < stated.size:
        raise ValueError(f"sample has {len(data)} bytes, fewer than the sizes of its columns take")
    sizes = iter(stated.unpack_from(data))
    values = {}
    start = stated.size
    for name, decode, size in layout:
        end = start + (next(sizes) if size is None else size)
        if end <= len(data):
            values[name] = decode(data, start, end)
        start = end
    if start != len(data):
        raise ValueError(f"sample has {len(data)} bytes, its columns state {start}")
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


def read_index(data: bytes, place: str) -> list[ShardFile]:
    """The shards of an index.json, checked for shape but not against the files. `place` names the file in errors."""
    try:
        index = json.loads(data)
        if index["version"] != 2:
            raise DatasetError(f"{place}: MDS version {index['version']}, expected 2")
        return [_shard_file(place, entry) for entry in index["shards"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{place} is damaged ({type(error).__name__}: {error}); rebuild the shards") from error


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


def _shard_file(place: str, entry: Mapping[str, Any]) -> ShardFile:
    if entry["compression"] is not None:
        raise DatasetError(f"{place}: shard compression {entry['compression']!r}; expected uncompressed shards")
    raw = entry["raw_data"]
    name = str(raw["basename"])
    if PurePath(name).name != name:
        raise DatasetError(f"{place}: shard {name!r}, expected the name of a file in the same folder")
    return ShardFile(
        name=name,
        bytes=int(raw["bytes"]),
        samples=int(entry["samples"]),
        xxh3=str(raw["hashes"].get(HASH, "")),
        columns=tuple(zip(entry["column_names"], entry["column_encodings"], strict=True)),
    )


@lru_cache
def _encoders(columns: tuple[tuple[str, str], ...]) -> tuple[list[tuple[str, _Encode, bool]], struct.Struct]:
    """Name and encoder of each column in the order stored, whether its size is stated; the struct of those sizes."""
    encoders = [(name, _encoder(encoding), column_size(encoding) is None) for name, encoding in sorted(columns)]
    return encoders, struct.Struct(f"<{sum(is_stated for *_, is_stated in encoders)}I")


@lru_cache
def _encoder(encoding: str) -> _Encode:
    kind, *args = encoding.split(":")
    if kind == "ndarray" and args:
        return partial(_encode_array, encoding, np.dtype(args[0]), _fixed_shape(args))
    types: dict[str, tuple[Any, _Encode]] = {
        "bytes": (bytes, bytes),
        "str": (str, str.encode),
        "int": (int, lambda value: np.int64(value).tobytes()),
        "json": (object, lambda value: json.dumps(value).encode()),
    }
    expected, encode = types.get(kind, ((), bytes))

    def checked(value: Any) -> bytes:
        if not isinstance(value, expected):
            raise TypeError(f"column encoding {encoding!r} cannot hold {type_name(value)}")
        return encode(value)

    return checked


def _fixed_shape(args: Sequence[str]) -> tuple[int, ...] | None:
    return tuple(int(n) for n in args[1].split(",")) if args[1:] else None


def _encode_array(encoding: str, dtype: np.dtype[Any], fixed: tuple[int, ...] | None, array: Any) -> bytes:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"column encoding {encoding!r} cannot hold {type_name(array)}")
    if array.dtype != dtype:
        raise TypeError(f"column encoding {encoding!r} cannot hold dtype {array.dtype}")
    if array.size == 0 or array.ndim == 0 or (fixed is not None and array.shape != fixed):
        raise ValueError(f"column encoding {encoding!r} cannot hold an array of shape {array.shape}")
    if fixed is not None:
        return array.tobytes()
    most = max(array.shape)
    head = array.ndim << 2 | (0 if most < 2**8 else 1 if most < 2**16 else 2 if most < 2**32 else 3)
    return bytes((head,)) + _SHAPES[head].pack(*array.shape) + array.tobytes()


@lru_cache
def _layout(columns: tuple[tuple[str, str], ...]) -> tuple[list[tuple[str, _Decode, int | None]], struct.Struct]:
    """Name, decoder and fixed size of each column in the order stored; the struct of the sizes before the columns."""
    layout = [(name, _decoder(encoding), column_size(encoding)) for name, encoding in sorted(columns)]
    return layout, struct.Struct(f"<{sum(size is None for *_, size in layout)}I")


def _decoder(encoding: str) -> _Decode:
    kind, *args = encoding.split(":")
    if kind == "bytes":
        return lambda data, start, end: data[start:end]
    if kind == "str":
        return lambda data, start, end: data[start:end].decode()
    if kind == "int":
        return lambda data, start, end: int.from_bytes(data[start:end], "little", signed=True)
    if kind == "json":
        return lambda data, start, end: json.loads(data[start:end].decode())
    if kind == "ndarray" and args:
        return _array_decoder(np.dtype(args[0]), _fixed_shape(args))
    raise TypeError(f"column encoding {encoding!r} is not one of bytes, str, int, json, ndarray:DTYPE[:SHAPE]")


def _array_decoder(dtype: np.dtype[Any], fixed: tuple[int, ...] | None) -> _Decode:
    def decode(data: bytes, start: int, end: int) -> npt.NDArray[Any]:
        head = _SHAPES[data[start]] if start < end else _SHAPES[0]
        begin = start + 1 + head.size
        shape = head.unpack_from(data, start + 1) if begin <= end else ()
        if not shape or 0 in shape or begin + math.prod(shape) * dtype.itemsize != end:
            raise ValueError(f"{end - start} bytes do not hold an array of {dtype} with shape {shape}")
        return np.ndarray(shape, dtype, data, begin)

    return decode if fixed is None else lambda data, start, end: np.ndarray(fixed, dtype, data, start)
