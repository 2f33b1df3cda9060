"""Files and folders that are whole or not there: written beside their name, synced, renamed."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmms.configs.errors import LmmsError

PART_SUFFIX = ".part"
"""Ending of what is still being written, inside a folder that lmms alone writes to."""
PART_ENDING = ".lmms-part"
"""The same beside a name that a user gave: nobody else would give this one, and what is in it may be deleted."""


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file that holds all of the content on the disk when this returns, or what it held before. OSError."""
    with beside(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields PATH.part to write a file or a folder to; it becomes `path` at the end of the block.

    What a killed process left there is deleted first, and what the block wrote where it raises. A file that is at
    `path` is replaced; a folder must not be there by then.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    remove(part)
    try:
        yield part
        sync(part)
        part.rename(path)
    except BaseException:
        remove(part)
        raise
    sync_folder(path.parent)


@contextmanager
def new_folder(out: Path, error: type[LmmsError]) -> Iterator[Path]:
    """Yields OUT.lmms-part, a folder that becomes `out` at the end of the block and goes away where it raises.

    What a killed process left there is deleted. `error` is raised where `out` exists, and while another process
    writes it.
    """
    if out.exists():
        raise error(f"{out} exists; remove it or name another folder")
    part = out.with_name(out.name + PART_ENDING)
    part.mkdir(parents=True, exist_ok=True)
    # The lock goes with the process, so a kill leaves none behind. It is held on the folder, not on its name.
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not part.exists() or not os.path.samestat(os.fstat(descriptor), part.stat()):
            raise BlockingIOError
    except BlockingIOError:
        os.close(descriptor)
        raise error(f"another process is writing {out}; wait for it or name another folder") from None
    try:
        for leftover in part.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield part
        sync(part)
        part.rename(out)
        sync_folder(out.parent)
    finally:
        remove(part)
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, as far as it is there and can be deleted."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """A file, or a folder with all below it, is on the disk when this returns."""
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
    sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Names made, changed or deleted in a folder are on the disk when this returns."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def mode_by_umask(path: Path) -> Iterator[None]:
    """Give the file that the block writes the mode that `open` would give it, whatever made it.

    safetensors 0.8 writes through a temporary file that only its owner may read.
    """
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)
