"""Sources behind URLs: their files are copied into a folder of the build first, then read as files are.

The stores are those of shards: s3, gs, az, http(s), hf, sftp, oci and dbfs, with the same credentials.
"""

import fnmatch
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lmms.configs.errors import DatasetError, SourceError
from lmms.configs.room import no_room
from lmms.configs.stores.remote import missing
from lmms.configs.stores.store import Store, open_store, shown
from lmms.prep.progress import Progress, Report
from lmms.prep.rows.find import FileSet, Unread, find_files
from lmms.prep.rows.kinds import EXPECTED, ending_of, kind_of

_FIRST_RETRY_S = 10.0
"""Seconds for which a store is asked again before it has answered once: its name may be wrong."""
_RETRY_S = 120.0
"""The same once it has answered."""
_PICTURE_RETRY_S = 30.0
"""Seconds for which a store is asked again for a picture beside a source: as long as any picture of the network has."""
_BLOCK = 8 * 2**20


def is_url(path: str) -> bool:
    """Whether a source is behind a URL."""
    return re.match(r"\w[\w+.-]+://|dbfs:/", path) is not None


def fetch_files(url: str, folder: Path, report: Report) -> tuple[list[FileSet], Unread]:
    """Copy the files at a URL into `folder`; returns what find_files does. SourceError for a file that is not there.

    url: of a file, of a folder, or of the files of a folder with `*` in the last name. Folders within it are not read.
    report: called with the bytes that are copied, of the bytes of all files where the store says how many there are.
    """
    here = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    here.mkdir(parents=True, exist_ok=True)
    place, _, last = url.rstrip("/").rpartition("/")
    unread: Unread = Counter()
    is_file = kind_of(Path(last)) is not None and not glob.has_magic(last)
    if not is_file:
        place, pattern = (place, last) if glob.has_magic(last) else (url.rstrip("/"), "*")
    store = open_store(place, _FIRST_RETRY_S)
    report(Progress("copying", 0, 0, 0, 0, 0))
    try:
        if is_file:
            store.read_range(last, 0, 1)
        sizes = {last: 0} if is_file else _sizes(store, pattern, unread)
        store = open_store(place, _RETRY_S)
        total, before = sum(sizes.values()), 0
        for name in sizes:
            for copied in _copy(store, name, here / name):
                report(Progress("copying", before + copied, total, 0, 0, 0))
            before += copied
    except DatasetError as error:
        raise SourceError(_in_words_of_sources(error, store, [last] if is_file else [])) from error
    files, unread_copies = find_files(str(here / last if is_file else here))
    beside = open_store(place, _PICTURE_RETRY_S)
    named = [replace(each, name=f"{store.where}/{each.files[0].name}", beside=beside) for each in files]
    return named, unread + unread_copies


def _sizes(store: Store, pattern: str, unread: Unread) -> Mapping[str, int]:
    """The files of a folder that hold records, by name, with their bytes; the others are counted."""
    sizes = store.sizes()
    if sizes is None:
        raise SourceError(f"{store.where} gives no list of its files; name each file by its URL")
    names = sorted(name for name in sizes if fnmatch.fnmatch(name, pattern))
    for name in names:
        if name.startswith("."):
            unread["hidden file"] += 1
        elif kind_of(Path(name)) is None:
            unread[f"file {ending_of(Path(name))}"] += 1
    wanted = {name: sizes[name] for name in names if kind_of(Path(name)) and not name.startswith(".")}
    if not wanted:
        raise SourceError(f"{store.where}: no file of chat records there; expected {EXPECTED}")
    return wanted


def _copy(store: Store, name: str, file: Path) -> Iterator[int]:
    """Copy a file, unless it is there; yields the bytes copied so far, at first 0."""
    yield 0
    if file.exists():
        yield file.stat().st_size
        return
    try:
        with file.open("wb") as copy:
            while block := store.read_range(name, copy.tell(), _BLOCK):
                copy.write(block)
                yield copy.tell()
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
