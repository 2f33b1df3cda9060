"""The files behind a path, a folder or a glob; and what of a folder is not read.

A file that the user names is read, whatever its name. From a folder or a glob these are not: names that begin with a
dot, map caches of the package datasets, and what other programs leave there. A linked folder is not followed, since
the link may lead back.
"""

import fnmatch
import glob
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms.configs.contract.manifest import MANIFEST_NAME
from lmms.configs.errors import SourceError
from lmms.configs.files import PART_ENDING
from lmms.configs.stores.store import Store
from lmms.prep.rows.json_list import holds_records
from lmms.prep.rows.kinds import EXPECTED, Kind, ending_of, kind_of

REJECTS_ENDING = ".rejects.parquet"
"""Ending of the ledger that a build leaves next to its output when it stops for too many rejects."""
_OURS = (REJECTS_ENDING, PART_ENDING)
_CACHES = "cache-*.arrow"
_LEFTOVERS = ("__MACOSX", "__pycache__", "_temporary", "_delta_log", "lost+found", "node_modules", "$RECYCLE.BIN")
"""Folders of other programs."""
_NO_RECORDS = (
    *("dataset_info.json", "dataset_infos.json", "state.json", "config.json", "tokenizer.json", "package.json"),
    *("tokenizer_config.json", "generation_config.json", "preprocessor_config.json", "vocab.json"),
)

Unread = Counter[str]
"""What of some folders is not read, in words -> how often."""


@dataclass(frozen=True, slots=True)
class FileSet:
    """A file of records, or the files of one saved data set."""

    name: str
    files: tuple[Path, ...]
    kind: Kind
    folder: Path
    """Folder that image paths are relative to by default."""
    beside: Store | None = None
    """The store that image paths are relative to instead, where the files are copies."""


def find_files(pattern: str) -> tuple[list[FileSet], Unread]:
    """The files behind one path, folder or glob, by name, and what is not read there. SourceError if there are none."""
    unread: Unread = Counter()
    if glob.has_magic(pattern) and not Path(pattern).exists():
        paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207
        wants_caches = fnmatch.fnmatch(Path(pattern).name, _CACHES)
        files = [file for path in paths for file in _child(path, unread, wants_caches)]
    else:
        files = list(_named(Path(pattern), unread))
    if not files:
        there = f" ({unread_text(unread)})" if unread else ""
        raise SourceError(f"{pattern}: no file of chat records there{there}; expected {EXPECTED}")
    return files, unread


def unread_text(unread: Mapping[str, int]) -> str:
    """What is not read, for a line: `12 files .txt, 1 linked folder`."""
    return ", ".join(f"{number:,} {_plural(what) if number > 1 else what}" for what, number in unread.items())


def _plural(what: str) -> str:
    """`file .txt` -> `files .txt`: the noun is the first word that is file, folder or cache."""
    return re.sub(r"\b(file|folder|cache)\b", r"\1s", what, count=1)


def _named(path: Path, unread: Unread) -> Iterator[FileSet]:
    if path.is_file():
        kind = kind_of(path)
        if kind is None:
            raise SourceError(f"{path}: not a file of chat records; expected {EXPECTED}")
        yield FileSet(path.as_posix(), (path,), kind, path.parent)
    elif path.is_dir():
        yield from _folder(path, unread)
    elif path.is_symlink():
        raise SourceError(f"{path} is a link to {path.readlink()}, which does not exist")
    else:
        raise SourceError(
            f"{path} " + ("is a device or a pipe, expected a file" if path.exists() else "does not exist")
        )


def _folder(path: Path, unread: Unread) -> Iterator[FileSet]:
    if (path / "dataset_dict.json").is_file():
        splits = _read_json(path / "dataset_dict.json", "splits")
        if len(splits) != 1:
            raise SourceError(
                f"{path} holds the splits {', '.join(splits)}; name the ones to pack, such as {path / str(splits[0])}"
            )
        yield from _named(path / str(splits[0]), unread)
    elif (path / "state.json").is_file():
        yield _saved_dataset(path)
    elif (path / MANIFEST_NAME).is_file():
        return  # shards of ours
    elif all((path / name).is_dir() for name in ("blobs", "snapshots")):
        yield from _named(_snapshot(path), unread)
    else:
        for child in sorted(path.iterdir()):
            yield from _child(child, unread, False)


def _child(path: Path, unread: Unread, wants_caches: bool) -> Iterator[FileSet]:
    """The files at a path that the user did not name as such."""
    left_out = _why_unread(path, wants_caches)
    if left_out is None:
        yield from _named(path, unread)
    elif left_out:
        unread[left_out] += 1


def _why_unread(path: Path, wants_caches: bool) -> str | None:
    """What to call a path that is not read, "" for a path that needs no word, None for a path that is read."""
    if path.name.startswith("."):
        return "hidden folder" if path.is_dir() else "hidden file"
    if path.name.endswith(_OURS):
        return ""
    if path.is_dir():
        if path.name in _LEFTOVERS:
            return f"folder {path.name}"
        return "linked folder" if path.is_symlink() else None
    if kind_of(path) is None:
        return f"file {ending_of(path)}"
    if fnmatch.fnmatch(path.name, _CACHES) and not wants_caches:
        return "map cache"
    if path.name in _NO_RECORDS or (kind_of(path) == "json" and path.is_file() and not _holds_records(path)):
        return "file .json without a list of records"
    return None


def _holds_records(path: Path) -> bool:
    try:
        return holds_records(path)
    except (OSError, EOFError) as error:
        raise SourceError(f"{path}: cannot be read ({error}); the file is damaged or cut off") from error


def _snapshot(path: Path) -> Path:
    """The newest snapshot of a folder of the hub's cache; its files are links to `blobs`."""
    main = path / "refs" / "main"
    snapshots = sorted(snapshot for snapshot in (path / "snapshots").iterdir() if snapshot.is_dir())
    if main.is_file():
        snapshots = [path / "snapshots" / main.read_text().strip()]
    if len(snapshots) != 1:
        names = ", ".join(snapshot.name for snapshot in snapshots) or "none"
        raise SourceError(f"{path} holds several snapshots, or none: {names}; name the one to pack")
    return snapshots[0]


def _saved_dataset(path: Path) -> FileSet:
    state = path / "state.json"
    entries = _read_json(state, "_data_files")
    try:
        files = tuple(path / entry["filename"] for entry in entries)
        has_selection = bool(json.loads(state.read_text()).get("_indices_data_files"))
    except (KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{state} is not that of a saved data set ({error!r})") from error
    if has_selection:
        raise SourceError(f"{path} holds a selection by index; save it again after .flatten_indices()")
    if not files:
        raise SourceError(f"{path} is a saved data set without files: nothing to pack")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise SourceError(f"{state} names {missing[0].name}, which is not there; save or copy the data set again")
    return FileSet(path.as_posix(), files, "arrow", path)


def _read_json(file: Path, key: str) -> Sequence[Any]:
    """A list under a key of a JSON file of the package datasets."""
    try:
        value = json.loads(file.read_text())[key]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{file} is not that of a saved data set ({error})") from error
    if not isinstance(value, list):
        raise SourceError(f"{file} is not that of a saved data set: `{key}` is no list")
    return value
