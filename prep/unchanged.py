"""Files of records that change while a build reads them: a build of half the old and half the new is refused by name.

A file has changed if its size or its time of change is another, or if its state is newer while its mode, owner and
links are as before: a program can set back the time of change, but not that of the state.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lmms.configs.errors import SourceError
from lmms.prep.sources import Source


@dataclass(frozen=True, slots=True)
class FileState:
    """What tells a file from a later state of the file, as far as the system knows."""

    size: int
    written_ns: int
    state_ns: int
    owned: tuple[int, int, int, int]
    """Mode, user, group and number of links: a change of them is one of the state, and none of the content."""
    number: int
    """Inode: some file systems give a file a new one, so alone it says nothing."""


States: TypeAlias = Mapping[Path, FileState]


def states_of(sources: Sequence[Source]) -> States:
    """The state of each file. SourceError for a file that is gone."""
    return {file: _state(file) for source in sources for file in source.files}


def check_unchanged(states: States) -> None:
    """SourceError for the first file that is no longer as it was."""
    for file, before in states.items():
        now = _state(file)
        if (now.size, now.written_ns) == (before.size, before.written_ns) and (
            now.state_ns == before.state_ns or now.owned != before.owned
        ):
            continue
        what = "was replaced" if now.number != before.number else "was written to"
        sizes = f"{before.size:,} bytes before, {now.size:,} now" if now.size != before.size else "of the same size"
        raise SourceError(
            f"{file} {what} while the build read its records ({sizes}); run the same command again when nothing writes"
            " to it: what did not change is not read anew"
        )


@contextmanager
def unchanged(states: States) -> Iterator[None]:
    """SourceError if a file has changed by the end of the block, also where the change made the block fail."""
    try:
        yield
    except (SourceError, OSError) as error:
        try:
            check_unchanged(states)
        except SourceError as change:
            raise change from error
        raise
    check_unchanged(states)


def _state(file: Path) -> FileState:
    try:
        status = file.stat()
    except FileNotFoundError as error:
        raise SourceError(f"{file} was deleted or renamed while the build read its records") from error
    owned = (status.st_mode, status.st_uid, status.st_gid, status.st_nlink)
    return FileState(status.st_size, status.st_mtime_ns, status.st_ctime_ns, owned, status.st_ino)
