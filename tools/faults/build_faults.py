"""Faults of a build other than kills, each with its outcome: full disks, dead workers, changing files, two at once.

A fault gets an empty folder and builds there, with the fault at a known moment: most are done when the build reports
its progress. It raises AssertionError if the outcome is another than its docstring says.
"""

import errno
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
from PIL import Image

from lmms.configs.errors import LmmsError
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.build_report import REPORT_NAME
from lmms.prep.progress import Progress
from lmms.prep.rows import chunk as chunks
from tools.faults.page import ROOT
from tools.faults.pids import children

RECORDS, PICTURES = 120, 8


class NotPossible(Exception):
    """This machine cannot make the fault, as without the right to mount."""


def write_sources(folder: Path) -> Path:
    """Conversations with pictures as lines, and texts as a table: seven chunks, 5 MB of samples, 2 % broken."""
    data = folder / "data"
    data.mkdir()
    for i in range(PICTURES):
        Image.effect_noise((160, 120 + 8 * i), 60).save(data / f"{i}.png")
    lines = []
    for i in range(RECORDS):
        parts = [{"type": "image", "image": f"{i % PICTURES}.png"}, {"type": "text", "text": "word " * (i % 37)}]
        turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": f"answer {i}"}]
        lines.append(json.dumps({"messages": turns}) if i % 50 != 7 else "{")
    (data / "a.jsonl").write_text("\n".join(lines) + "\n")
    texts = [json.dumps([{"role": r, "content": f"{r} {i} " * 20} for r in ("user", "assistant")]) for i in range(700)]
    pl.DataFrame({"messages": texts}).write_parquet(data / "b.parquet")
    return data


def settings(folder: Path, out: str = "out", **more: Any) -> PrepConfig:
    """A build of write_sources, with shards of 1 MiB."""
    values: dict[str, Any] = {"seq_len": 1024, "max_rejects": 0.5, "workers": 0, "shard_bytes": 2**20, **more}
    data = folder / "data" if (folder / "data").exists() else write_sources(folder)
    model = str(ROOT / "cli" / "demo" / "model")
    return PrepConfig(
        sources=(str(data / "b.parquet"), str(data / "a.jsonl")), model=model, out=str(folder / out), **values
    )


def files(out: str | Path) -> Mapping[str, bytes]:
    """The files of a shard folder that are equal in equal builds: all but the report, which has times."""
    return {path.name: path.read_bytes() for path in sorted(Path(out).iterdir()) if path.name != REPORT_NAME}


def at(stage: str, fault: Callable[[], object], done: int = 1) -> Callable[[Progress], None]:
    """A report that makes the fault once, as soon as so much of a stage is done."""
    left = [fault]

    def report(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= done and left:
            left.pop()()

    return report


def check_same(config: PrepConfig) -> None:
    """The shards of a build are those of an undisturbed one, and nothing else stands beside them."""
    out = Path(config.out)
    undisturbed = replace(config, out=config.out + "-undisturbed", store="none", workers=0)
    build_shards(undisturbed)
    assert files(config.out) == files(undisturbed.out), "the shards differ"
    left = [path.name for path in out.parent.glob(f"{out.name}.*")]
    assert not left, f"{left} were left behind"


def check_refused(config: PrepConfig, said: str, **more: Any) -> None:
    """A build ends with an error that says so, and leaves no output."""
    heard = "no error"
    try:
        build_shards(config, **more)
    except LmmsError as error:
        heard = str(error)
    assert said in heard, f"{heard}; expected {said}"
    out = Path(config.out)
    if out.parent.exists():
        there = {path.name for path in out.parent.iterdir()} & {out.name, f"{out.name}.lmms-part"}
        assert not there, f"there is {there}"


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A folder on a disk of so many bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise NotPossible("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def disk_full_of_samples(folder: Path) -> None:
    """The disk is full while samples are spooled: an error names the disk; with room, the same command goes on."""
    config = settings(folder, workers=2)
    with small_disk(folder / "disk", 3 * 2**20) as disk:
        config = replace(config, out=str(disk / "out"))
        check_refused(config, f"the disk of {disk / 'out.lmms-part'} is full")
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        build_shards(config)
        check_same(config)


def disk_full_of_shards(folder: Path) -> None:
    """The disk is full while shards are written: the same."""
    config = settings(folder, workers=2)
    with small_disk(folder / "disk", 64 * 2**20) as disk:
        config = replace(config, out=str(disk / "out"))
        limit = at("writing", lambda: _leave_room(disk, 2**20), done=0)
        check_refused(config, f"the disk of {disk / 'out.lmms-part'} is full", report=limit)
        (disk / "filler").unlink()
        build_shards(config)
        check_same(config)


def _leave_room(disk: Path, size: int) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - size))


def disk_full_of_tables(folder: Path) -> None:
    """The disk is full when the tables are written: the same."""
    config = settings(folder)
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch("lmms.prep.writer.write_columns", side_effect=full):
        check_refused(config, f"the disk of {folder / 'out.lmms-part'} is full")
    build_shards(config)
    check_same(config)


def disk_full_of_rejects(folder: Path) -> None:
    """The disk is full when the ledger of a build that stops is written: an error names the disk."""
    full = OSError(errno.ENOSPC, "No space left on device")
    with patch("lmms.prep.engine.ledger.write_rows", side_effect=full):
        check_refused(settings(folder, max_rejects=0.0), f"the disk of {folder} is full")


def disk_full_of_kept_chunks(folder: Path) -> None:
    """The disk of the store is full: the build goes on and keeps less."""
    with small_disk(folder / "disk", 2**20) as disk:
        config = settings(folder, store=str(disk / "store"))
        build_shards(config)
        check_same(config)


def file_limit(folder: Path) -> None:
    """Files may not be larger than a chunk's samples (ulimit -f): an error names the limit."""
    config = settings(folder, store="none")
    code = (
        "import resource\nfrom lmms.configs.settings.prep import PrepConfig\nfrom lmms.prep.build import build_shards\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, {resource.RLIM_INFINITY}))\n"
        f"if __name__ == '__main__':\n    build_shards({config!r})\n"
    )
    (folder / "limited.py").write_text(code)
    done = subprocess.run([sys.executable, str(folder / "limited.py")], capture_output=True, text=True)
    assert "may be larger than 488.3 KiB (ulimit -f)" in done.stderr, done.stderr
    assert not (folder / "out").exists()


def _kill_a_child(command: str) -> None:
    """SIGKILL to a child of this process whose command line has this word."""
    for pid in children(os.getpid()):
        if command in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)
            return
    raise AssertionError(f"no process of {command} was there to kill")


def dead_worker_at(stage: str, done: int, command: str) -> Callable[[Path], None]:
    """The fault: a process of the build dies."""

    def fault(folder: Path) -> None:
        config = settings(folder, workers=2)
        build_shards(config, at(stage, lambda: _kill_a_child(command), done))
        check_same(config)

    return fault


def read_only_output(folder: Path) -> None:
    """The folder for the output cannot be written: an error names it."""
    config = settings(folder)
    with small_disk(folder / "disk", 2**20) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        check_refused(replace(config, out=str(disk / "out")), str(disk / "out"))


def missing_folders(folder: Path) -> None:
    """A source or a root of media that is not there is an error with its name; folders above the output are made."""
    config = settings(folder)
    check_refused(replace(config, sources=(str(folder / "none" / "a.jsonl"),)), f"{folder / 'none'}")
    check_refused(replace(config, media_root=str(folder / "none")), f"{folder / 'none'}")
    deep = replace(config, out=str(folder / "new" / "folders" / "out"))
    build_shards(deep)
    check_same(deep)


def long_paths(folder: Path) -> None:
    """Sources and output at paths of 3,500 bytes are read and written; a name that is too long is an error."""
    deep = folder
    while len(str(deep)) < 3300:
        deep = deep / ("d" * 200)
    deep.mkdir(parents=True)
    config = settings(deep)
    build_shards(config)
    check_same(config)
    check_refused(replace(config, out=str(folder / ("o" * 300))), "o" * 300)


def slow_reads(folder: Path) -> None:
    """Every read is slow and short, as on a network file system: the same shards."""

    reads = []

    class Slow(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            time.sleep(0.002)
            reads.append(len(buffer))
            view = memoryview(buffer)
            return super().readinto(view[: max(1, len(view) // 3)])

    opened = io.open

    def slowly(file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        is_source = mode == "rb" and str(file).startswith(str(folder / "data"))
        return io.BufferedReader(Slow(str(file))) if is_source else opened(file, mode, *arguments, **more)

    config = settings(folder)
    with patch("io.open", slowly):
        build_shards(config)
    assert len(reads) > 2, "no read was slow"
    check_same(config)


def clock_jumps(folder: Path) -> None:
    """The clock jumps by ten years, back and forth, and files come from the future: the same shards."""
    config = settings(folder, store=str(folder / "store"))
    years, jumps = 10 * 365 * 86400.0, iter(range(10**9))
    now, monotonic = time.time, time.monotonic

    def jumping() -> float:
        return now() + (years if next(jumps) % 2 else -years)

    for file in (folder / "data").iterdir():
        os.utime(file, (now() + years, now() + years))
    with patch("time.time", jumping):
        build_shards(config)
        assert monotonic() > 0
    for number, kept in enumerate(sorted((folder / "store").rglob("*.npz"))):
        os.utime(kept, (0, now() + years if number % 2 else 1))
    again = replace(config, out=str(folder / "again"))
    build_shards(again)
    assert files(config.out) == files(again.out)
    check_same(config)


def two_builds_of_one_output(folder: Path) -> None:
    """A second build into the same folder is refused while the first runs; the first is not disturbed."""
    config = settings(folder)

    def second() -> None:
        said = ""
        try:
            build_shards(config)
        except LmmsError as error:
            said = str(error)
        assert f"another process is writing {config.out}" in said, f"the second build was not refused: {said}"

    build_shards(config, at("reading", second))
    check_same(config)


def two_builds_of_one_store(folder: Path) -> None:
    """Two builds share a store at once: both give the shards of an undisturbed build."""
    first, second = (settings(folder, out, store=str(folder / "store"), workers=2) for out in ("first", "second"))
    build_shards(first, at("reading", lambda: build_shards(second)))
    check_same(first)
    check_same(second)


def _kept(folder: Path, ending: str) -> list[Path]:
    return sorted((folder / "out.lmms-store").rglob(f"*{ending}"))


def store_deleted(folder: Path) -> None:
    """The store is deleted while the build runs: the same shards."""
    config = settings(folder)
    build_shards(config, at("reading", lambda: shutil.rmtree(folder / "out.lmms-store")))
    check_same(config)


def store_on_another_disk_deleted(folder: Path) -> None:
    """The same, of a store on another disk than the output: an error, and the same command goes on."""
    with small_disk(folder / "disk", 64 * 2**20) as disk:
        config = settings(folder, store=str(disk / "store"))
        build_shards(replace(config, out=str(folder / "first")))
        gone = at("writing", lambda: shutil.rmtree(disk / "store"), done=0)
        check_refused(config, "was changed or deleted while the build ran", report=gone)
        build_shards(config)
        check_same(config)


def store_damaged(how: Callable[[Path], object]) -> Callable[[Path], None]:
    """The fault: all files of a store are changed while the build runs, some after they were taken."""

    def fault(folder: Path) -> None:
        config = settings(folder)
        damage = at("writing", lambda: [how(file) for file in _kept(folder, ".samples")], done=0)
        check_refused(config, "was changed or deleted while the build ran", report=damage)
        build_shards(config)
        check_same(config)

    return fault


def _overwrite(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"other")


def _cut(file: Path) -> None:
    os.truncate(file, 100)


def kept_facts_damaged(folder: Path) -> None:
    """What is kept about chunks is damaged while the build runs: the same shards, also of the next build."""
    config = settings(folder, store=str(folder / "out.lmms-store"))
    build_shards(config, at("reading", lambda: [file.write_bytes(b"x") for file in _kept(folder, ".npz")]))
    build_shards(replace(config, out=str(folder / "again")))
    assert files(config.out) == files(folder / "again")
    shutil.rmtree(folder / "out.lmms-store")
    check_same(config)


def changed_source(name: str, change: Callable[[Path], object], said: str, stage: str) -> Callable[[Path], None]:
    """The fault: a source changes while a build reads, or after that."""

    def fault(folder: Path) -> None:
        config = settings(folder)
        source = folder / "data" / name
        check_refused(config, f"{source} {said}", report=at(stage, lambda: change(source), 0))

    return fault


def _grow(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b'{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n')


def _shrink(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _replace(file: Path) -> None:
    other = file.with_name("other")
    shutil.copy(file, other)
    other.replace(file)


def _rewrite_in_secret(file: Path) -> None:
    """Other bytes, the same size, and the time of change set back."""
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"answer", b"ANSWER"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def links_and_modes_of_a_source(folder: Path) -> None:
    """A source gets another mode and a hard link while the build runs, as by a backup: no change, the same shards."""
    config = settings(folder)

    def touch() -> None:
        (folder / "data" / "a.jsonl").chmod(0o600)
        (folder / "backup").hardlink_to(folder / "data" / "a.jsonl")

    build_shards(config, at("reading", touch, 0))
    check_same(config)


def changed_picture(folder: Path) -> None:
    """A picture changes while the build runs: each record has the old or the new one whole, a later build the new."""
    config = settings(folder, store=str(folder / "store"))
    picture = folder / "data" / "0.png"
    before, after = picture.read_bytes(), (folder / "data" / "1.png").read_bytes()
    build_shards(config, at("reading", lambda: picture.write_bytes(after)))
    stored = b"".join(data for name, data in files(config.out).items() if name.endswith(".mds"))
    assert before in stored or after in stored
    again = replace(config, out=str(folder / "again"))
    build_shards(again)
    assert before not in b"".join(files(again.out).values()), "the next build has the picture that was"
    check_same(again)


FAULTS: Mapping[str, tuple[Callable[[Path], None], str]] = {
    "disk full: samples": (disk_full_of_samples, ""),
    "disk full: shards": (disk_full_of_shards, ""),
    "disk full: tables": (disk_full_of_tables, ""),
    "disk full: ledger of rejects": (disk_full_of_rejects, ""),
    "disk full: store": (disk_full_of_kept_chunks, ""),
    "limit of a file's size": (file_limit, ""),
    "reader of tables killed": (
        dead_worker_at("reading", 1, "lmms.prep.rows.child"),
        "SIGKILL to the process that reads tables: it is started again, the same shards.",
    ),
    "worker killed: rendering": (
        dead_worker_at("reading", 1, "spawn_main"),
        "SIGKILL to a worker: a new one does its chunk, the same shards.",
    ),
    "worker killed: writing": (
        dead_worker_at("writing", 1, "spawn_main"),
        "SIGKILL to a worker: a new one writes its shard, the same shards.",
    ),
    "output read-only": (read_only_output, ""),
    "folders missing": (missing_folders, ""),
    "very long paths": (long_paths, ""),
    "slow reads": (slow_reads, ""),
    "clock jumps": (clock_jumps, ""),
    "two builds, one output": (two_builds_of_one_output, ""),
    "two builds, one store": (two_builds_of_one_store, ""),
    "store deleted": (store_deleted, ""),
    "store on another disk deleted": (store_on_another_disk_deleted, ""),
    "kept samples overwritten": (
        store_damaged(_overwrite),
        "Kept samples are written over while the build uses them: an error, and the same command goes on.",
    ),
    "kept samples cut off": (store_damaged(_cut), "Kept samples are cut off meanwhile: the same."),
    "kept facts damaged": (kept_facts_damaged, ""),
    "source grows": (
        changed_source("a.jsonl", _grow, "was written to", "reading"),
        "A line is added to a source while it is read: refused with its name.",
    ),
    "source shrinks": (changed_source("a.jsonl", _shrink, "was written to", "reading"), "It is cut off: refused."),
    "source replaced": (
        changed_source("a.jsonl", _replace, "was replaced", "writing"),
        "Another file has its name, after it was read: refused.",
    ),
    "table rewritten": (
        changed_source("b.parquet", lambda file: file.write_bytes(file.read_bytes()), "was written to", "reading"),
        "A Parquet file is written anew: refused.",
    ),
    "source rewritten in secret": (
        changed_source("a.jsonl", _rewrite_in_secret, "was written to", "writing"),
        "Other bytes of the same size, with the time of change set back: refused.",
    ),
    "source deleted": (
        changed_source("a.jsonl", Path.unlink, "was deleted", "reading"),
        "A source is deleted while it is read: refused.",
    ),
    "mode and links of a source": (links_and_modes_of_a_source, ""),
    "picture changes": (changed_picture, ""),
}
"""Name -> the fault, and what it does where its docstring does not say so."""


def what_it_does(name: str) -> str:
    """A sentence about a fault and its outcome."""
    fault, words = FAULTS[name]
    return words or (fault.__doc__ or "").strip()


def run_fault(name: str, folder: Path) -> str:
    """Make a fault; returns what is wrong, or an empty text. NotPossible where this machine cannot make it."""
    fault, _ = FAULTS[name]
    with patch.object(chunks, "CHUNK_ROWS", 50):
        try:
            fault(folder)
        except AssertionError as error:
            return f"{name}: {error}"
    return ""
