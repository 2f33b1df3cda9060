"""Small sound files of records of every kind, and random damage."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
from collections.abc import Callable, Mapping

import polars as pl
from backports import zstd

ROWS = 40
"""Records of each file."""


def records() -> list[dict[str, object]]:
    """Conversations of several lengths with tools, null and text of several alphabets."""
    texts = ("What is this?", "Wie heißt das?", "这是什么? \u2028", '{"quoted": "\\\\"}')
    return [
        {
            "id": i,
            "messages": [
                {"role": "user", "content": texts[i % 4] * (i % 7 + 1), "name": None},
                {"role": "assistant", "content": f"answer {i}", "name": "a" if i % 3 else None},
            ],
        }
        for i in range(ROWS)
    ]


def sound_files() -> Mapping[str, bytes]:
    """Ending -> the content of a sound file of that kind."""
    lines = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records())
    cells = pl.DataFrame({"id": range(ROWS), "messages": [json.dumps(record["messages"]) for record in records()]})
    table = pl.DataFrame(records())
    return {
        ".jsonl": lines,
        ".jsonl.gz": gzip.compress(lines),
        ".jsonl.zst": zstd.compress(lines),
        ".jsonl.xz": lzma.compress(lines),
        ".jsonl.bz2": bz2.compress(lines),
        ".json": json.dumps(records(), indent=1).encode(),
        ".csv": _written(cells.write_csv),
        ".tsv": _written(lambda file: cells.write_csv(file, separator="\t")),
        ".tar": _tar("w"),
        ".tar.gz": _tar("w:gz"),
        ".parquet": _written(table.write_parquet),
        ".arrow": _written(lambda file: table.write_ipc(file, compat_level=pl.CompatLevel.oldest())),
        ".stream.arrow": _written(lambda file: table.write_ipc_stream(file, compat_level=pl.CompatLevel.oldest())),
    }


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy with one to eight bytes changed, or a piece cut out, put in or cut off."""
    copy = bytearray(data)
    place, length = rng.randrange(len(copy)), rng.randint(1, 64)
    how = rng.choice(("bytes", "bytes", "bytes", "out", "in", "off"))
    if how == "bytes":
        for _ in range(rng.randint(1, 8)):
            copy[rng.randrange(len(copy))] = rng.randrange(256)
    elif how == "out":
        del copy[place : place + length]
    elif how == "in":
        copy[place:place] = rng.randbytes(length)
    else:
        del copy[place:]
    return bytes(copy)


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _tar(mode: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for i, record in enumerate(records()):
            record["messages"] = [
                {"role": "user", "content": [{"type": "image"}]},
                {"role": "assistant", "content": "x"},
            ]
            for ending, data in (("json", json.dumps(record).encode()), ("jpg", bytes(range(200)))):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return file.getvalue()
