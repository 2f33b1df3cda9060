"""A full disk named: which folder, how much a build needs, how much is free."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lmms.configs.errors import BuildError
from lmms.configs.room import no_room


@contextmanager
def room_for(folder: Path, needed: Callable[[], int]) -> Iterator[None]:
    """BuildError that names `folder` if the block cannot write there for want of room.

    needed: about how many bytes the build takes there, asked when the disk is full.
    """
    try:
        yield
    except OSError as error:
        # An error of a worker, or of polars, may have no number but in its text.
        if text := no_room(f"[Errno {error.errno}] {error}", folder, needed()):
            raise BuildError(text) from error
        raise


def folder_bytes(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())
