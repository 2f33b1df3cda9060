"""Files and folders that are whole or not there: written next to their place, synced, renamed."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lmms.configs.errors import LmmsError

PART_SUFFIX = ".part"
"""Ending of files and folders still being written, in a folder that only lmms writes to."""
PART_ENDING = ".lmms-part"
"""The same next to a path that a user gave: no user would choose this ending, so the content may be deleted."""


def at_home(path: str) -> str:
    """A path that a user wrote, with the home folder in place of a ~ at its start."""
    return str(Path(path).expanduser()) if path.startswith("~") else path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file: on return the whole content is on the disk; after an error the old content is. Raises OSError."""
    with beside(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yields PATH.part, the place for a file or a folder that becomes `path` at the end of the block.

    PATH.part is deleted first, if a killed process left it, and also if the block raises. A file at `path` is replaced;
    a folder must not be there.
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
    """Yields OUT.lmms-part, a folder that becomes `out` at the end of the block; if the block raises, it is deleted.

    `error` is raised if `out` exists, and while another process writes `out`.
    """
    with part_folder(out, error) as part:
        yield part
        sync(part)
        part.rename(out)
        sync_folder(out.parent)


@contextmanager
def part_folder(out: Path, error: type[LmmsError]) -> Iterator[Path]:
    """Yields OUT.lmms-part, an empty folder that is deleted at the end of the block.

    Files that a killed process left there are deleted. `error` is raised if `out` exists, and while another process has
    the folder.
    """
    part = out.with_name(out.name + PART_ENDING)
    try:
        if out.exists():
            raise error(f"{out} exists; remove it or name another folder")
        part.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise error(f"{out} cannot be written ({fault.strerror}); name another folder") from fault
    # The lock ends with the process, also after a kill. The lock is on the folder, not on the folder's name.
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
    finally:
        remove(part)
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists and can be deleted."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all its content, is on the disk."""
    if path.is_dir():
        for entry in path.iterdir():
            sync(entry)
    sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Wait until new, changed and deleted names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def mode_by_umask(path: Path) -> Iterator[None]:
    """Give the file that the block writes the mode of a file made by `open`.

    safetensors 0.8 writes through a temporary file that only the owner may read.
    """
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)
