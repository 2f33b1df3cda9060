"""Sources behind URLs: their files are copied into a folder of the build first, then read as files are.

The stores are those of shards: s3, gs, az, http(s), hf, sftp, oci and dbfs, with the same credentials.
"""

import fnmatch
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmms.configs.errors import DatasetError, SourceError
from lmms.configs.room import no_room
from lmms.configs.stores.remote import missing
from lmms.configs.stores.store import Store, open_store, shown
from lmms.prep.rows.find import FileSet, Unread, find_files
from lmms.prep.rows.kinds import EXPECTED, ending_of, kind_of

_RETRY_S = 120.0
_BLOCK = 8 * 2**20


def is_url(path: str) -> bool:
    """Whether a source is behind a URL."""
    return re.match(r"\w[\w+.-]+://|dbfs:/", path) is not None


def fetch_files(url: str, folder: Path) -> tuple[list[FileSet], Unread]:
    """Copy the files at a URL into `folder`; returns what find_files does. SourceError for a file that is not there.

    url: of a file, of a folder, or of the files of a folder with `*` in the last name. Folders within it are not read.
    """
    here = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    here.mkdir(parents=True, exist_ok=True)
    place, _, last = url.rstrip("/").rpartition("/")
    unread: Unread = Counter()
    is_file = kind_of(Path(last)) is not None and not glob.has_magic(last)
    if not is_file:
        place, pattern = (place, last) if glob.has_magic(last) else (url.rstrip("/"), "*")
    store = open_store(place, _RETRY_S)
    try:
        names = [last] if is_file else _names(store, pattern, unread)
        for name in names:
            _copy(store, name, here / name)
    except DatasetError as error:
        raise SourceError(_in_words_of_sources(error, store, names if is_file else [])) from error
    files, unread_copies = find_files(str(here / last if is_file else here))
    return [replace(files_here, name=f"{store.where}/{files_here.files[0].name}") for files_here in files], (
        unread + unread_copies
    )


def _names(store: Store, pattern: str, unread: Unread) -> Sequence[str]:
    """The files of a folder that hold records; the others are counted."""
    sizes = store.sizes()
    if sizes is None:
        raise SourceError(f"{store.where} gives no list of its files; name each file by its URL")
    names = sorted(name for name in sizes if fnmatch.fnmatch(name, pattern))
    for name in names:
        if name.startswith("."):
            unread["hidden file"] += 1
        elif kind_of(Path(name)) is None:
            unread[f"file {ending_of(Path(name))}"] += 1
    wanted = [name for name in names if kind_of(Path(name)) and not name.startswith(".")]
    if not wanted:
        raise SourceError(f"{store.where}: no file of chat records there; expected {EXPECTED}")
    return wanted


def _copy(store: Store, name: str, file: Path) -> None:
    if file.exists():
        return
    try:
        with file.open("wb") as copy:
            while block := store.read_range(name, copy.tell(), _BLOCK):
                copy.write(block)
    except OSError as error:
        if text := no_room(f"[Errno {error.errno}]", file.parent, file.stat().st_size):
            raise SourceError(f"{shown(store.where)}/{name} is copied first, but {text}") from error
        raise


def _in_words_of_sources(error: DatasetError, store: Store, names: Sequence[str]) -> str:
    """The message of a store's error, which speaks of shards where a file is missing."""
    for name in names:
        if str(error) == str(missing(f"{store.where}/{name}")):
            return f"{store.where}/{name} is not there, or may not be read"
    return re.sub(r" \(data\.retry_s\);.*", "", str(error))
