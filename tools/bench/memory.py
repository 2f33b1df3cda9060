"""Memory of a build: the most that each of its processes holds, and all of them together.

    uv run python -m tools.bench.memory MODEL FOLDER [--memory BYTES] [--workers 2] [--only many,line,groups]

FOLDER is for files that are deleted afterwards, of some 30 gigabytes. A line of a Markdown table for each:

    many     lines with pictures as base64, ten times the bound in all (compressed in the file)
    line     small records, and among them a line of 200 MB with a picture as base64
    groups   a Parquet file with a row group of 2 GB of pictures

Resident bytes, by /proc every 20 ms; pages that processes share count for each of them. Linux only.
"""

import argparse
import base64
import json
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from backports import zstd

_BUILD = """
import sys
from lmms.configs.errors import LmmsError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
model, source, out, workers, memory = sys.argv[1:]
more = {"memory": int(memory)} if int(memory) else {}
config = PrepConfig(sources=(source,), model=model, seq_len=16384, out=out, workers=int(workers), max_rejects=1.0,
                    max_pixels=262144, **more)
if __name__ == "__main__":
    try:
        manifest = build_shards(config)
        print(manifest.counts["packed"], "packed", dict(manifest.rejects))
    except LmmsError as error:
        print(type(error).__name__, error)
"""
_EVERY_S = 0.02
_MB = 1e6


def picture(size: int, number: int) -> bytes:
    """A PNG of about so many bytes, stored without compression; each number has another."""
    side = max(int((size / 3) ** 0.5), 1)
    rows = np.full((side, 1 + 3 * side), number % 256, np.uint8)
    rows[:, 0] = 0
    rows[0, 1:5] = np.frombuffer(struct.pack(">I", number), np.uint8)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows.tobytes(), 0))]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*parts, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def line(size: int, number: int) -> bytes:
    """A record of about so many bytes, with its picture as base64."""
    image = base64.b64encode(picture(size * 3 // 4, number)).decode()
    parts = [{"type": "image", "base64": image}, {"type": "text", "text": f"What is in picture {number}?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "One colour."}]
    return json.dumps({"messages": turns}).encode() + b"\n"


def many(folder: Path, size: int) -> Path:
    """Lines of 1 MB, so many bytes in all."""
    file = folder / "many.jsonl.zst"
    with zstd.ZstdFile(str(file), "wb", level=1) as stream:
        for number in range(size // 1_000_000):
            stream.write(line(1_000_000, number))
    return file


def one_line(folder: Path, size: int) -> Path:
    """A hundred lines of 10 kB, and in their middle one of 200 MB."""
    file = folder / "line.jsonl"
    small = [line(10_000, number) for number in range(100)]
    file.write_bytes(b"".join([*small[:50], line(200_000_000, 100), *small[50:]]))
    return file


def groups(folder: Path, size: int) -> Path:
    """A row group of 2 GB, of pictures of 400 kB."""
    file = folder / "groups.parquet"
    rows = 5_000
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "One colour."}]
    noise = np.random.default_rng(0).bytes(2**25)  # behind the end of a picture, so that no page is small
    pictures = (picture(100_000, n) + noise[n * 1000 : n * 1000 + 300_000] for n in range(rows))
    frame = pl.DataFrame({"images": [[{"bytes": data}] for data in pictures], "messages": [turns] * rows})
    frame.write_parquet(file, row_group_size=rows, compression="uncompressed")
    return file


_CASES: dict[str, Callable[[Path, int], Path]] = {"many": many, "line": one_line, "groups": groups}


def measured(code: str, arguments: list[str]) -> tuple[str, float, dict[str, int], int]:
    """(what it said, seconds, kind of process -> most bytes of one of them, most bytes of all at once)."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as process:
        most: dict[str, int] = {}
        most_of_all = 0
        while process.poll() is None:
            now = list(_held(process.pid, "build"))
            for kind, size in now:
                most[kind] = max(most.get(kind, 0), size)
            most_of_all = max(most_of_all, sum(size for _, size in now))
            time.sleep(_EVERY_S)
        assert process.stdout is not None
        return process.stdout.read().strip(), time.perf_counter() - start, most, most_of_all


def _held(pid: int, kind: str) -> Iterator[tuple[str, int]]:
    """(kind, resident bytes) of a process and of all below it; nothing of those that have just ended."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        yield kind, pages * 4096
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            yield from _held(int(child), "tables" if b"lmms.prep.rows.child" in command else "worker")


def row(case: str, model: str, folder: Path, memory: int, workers: int) -> str:
    """A line of the table."""
    with TemporaryDirectory(dir=folder) as scratch:
        source = _CASES[case](Path(scratch), 10 * memory)
        given = [model, str(source), f"{scratch}/out", str(workers), str(memory)]
        said, seconds, most, of_all = measured(_BUILD, given)
    cells: list[Any] = [case, f"{memory / _MB:,.0f}", *(f"{most.get(k, 0) / _MB:,.0f}" for k in _KINDS)]
    return f"| {' | '.join([*map(str, cells), f'{of_all / _MB:,.0f}', f'{seconds:.0f} s', said])} |"


_KINDS = ("build", "worker", "tables")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--memory", type=int, default=1280 * 2**20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(_CASES))
    given = parser.parse_args()
    print("| input | bound, MB | build | a worker | tables | all | time | outcome |\n|---|--:|--:|--:|--:|--:|--:|---|")
    for case in given.only:
        print(row(case, given.model, given.folder, given.memory, given.workers), flush=True)


if __name__ == "__main__":
    main()
