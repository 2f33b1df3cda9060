"""The bytes of an image, video or sound: from a path under the media roots, text in a record, a column, the network.

Only regular files are read, and only those under a root, in spite of `..`, links and absolute paths. A source behind a
URL has its store in place of a root.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar
from urllib.parse import unquote

from lmms.configs.errors import refuse_file_limit
from lmms.configs.stores.store import Store
from lmms.configs.words import type_name
from lmms.prep.media.beside import read_beside
from lmms.prep.media.encoded import MediaKind, base64_bytes, data_uri_bytes, is_picture_text, shown
from lmms.prep.media.network import Network, fetch_media, is_web
from lmms.prep.media.roots import files_named, readings
from lmms.prep.reject import Reject

T = TypeVar("T")

MAX_IMAGE_BYTES = 256 * 2**20
"""Largest image file read by default."""
MAX_VIDEO_BYTES, MAX_VIDEO_FILE = 2 * 2**30, 2**42
"""Largest video or sound: in a record or behind a URL, which is read as a whole; and as a file, which is not."""

State: TypeAlias = tuple[int, int, int]
"""Size in bytes of a file, and times of change in ns: mtime, and ctime, which no program can set back."""
NO_FILE: State = (-1, -1, -1)
"""The state of a file that is not there, see state_of."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What was looked for on the disk so far, for the records of a chunk."""

    files: dict[str, State] = field(default_factory=dict)
    """File -> its state before it was read; NO_FILE where none was."""
    folders: dict[str, str] = field(default_factory=dict)
    """Folder -> where its links lead."""


_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class MediaRef:
    """An image, video or sound as the record names it."""

    kind: Literal["path", "url", "base64", "bytes"]
    """path: a path, which may also be an address or base64; url: the same, perhaps percent-encoded; base64: text that
    can be nothing else; bytes: of a binary column."""
    value: str | bytes

    def __post_init__(self) -> None:
        if isinstance(self.value, bytes) != (self.kind == "bytes"):
            raise TypeError(f"a file of kind {self.kind!r} cannot hold {type_name(self.value)}")


def address_of(reference: MediaRef, beside: Store | None) -> str | None:
    """The URL of an image that is read over the network; None for any other. beside: as in read_image."""
    value = reference.value
    if isinstance(value, bytes) or reference.kind == "base64" or value[:5].lower() == "data:":
        return None
    if is_web(value):
        return value
    return f"{beside.where}/{value}" if beside and not is_picture_text(value) else None


def read_image(
    reference: MediaRef,
    roots: Sequence[Path],
    max_bytes: int = MAX_IMAGE_BYTES,
    network: Network | None = None,
    beside: Store | None = None,
    looked: Looked | None = None,
) -> bytes:
    """The bytes of the image file, never empty. Paths are relative to one of `roots`. Raises Reject.

    looked: what is looked for on the disk is put in here. network: how to fetch what is behind http or https; None: no
    picture is fetched. beside: the store to which paths are relative, in place of the roots.
    """
    take = partial(_read_regular, value=str(reference.value), max_bytes=max_bytes)
    data = _found(reference, roots, max_bytes, network, beside, looked or Looked(), take, "image")
    if not data:
        raise Reject("empty_file", f"the image ({reference.kind}) has 0 bytes")
    _check_size(len(data), max_bytes, "the image")
    return data


def find_media(
    reference: MediaRef,
    roots: Sequence[Path],
    kind: Literal["video", "audio"],
    *,
    network: Network | None = None,
    beside: Store | None = None,
    looked: Looked | None = None,
) -> bytes | Path:
    """The file of a video or sound under the roots, or the bytes of any other; see read_image. Raises Reject."""
    take = partial(_regular, value=str(reference.value), max_bytes=MAX_VIDEO_FILE)
    file = _found(reference, roots, MAX_VIDEO_BYTES, network, beside, looked or Looked(), take, kind)
    if file == b"":
        raise Reject("empty_file", f"the {kind} ({reference.kind}) has 0 bytes")
    return file


def _found(
    reference: MediaRef,
    roots: Sequence[Path],
    max_bytes: int,
    network: Network | None,
    beside: Store | None,
    looked: Looked,
    take: Callable[[Path, os.stat_result], T],
    kind: MediaKind,
) -> bytes | T:
    """The bytes behind a reference, or what `take` makes of its file under the roots."""
    value = reference.value
    if isinstance(value, bytes):
        return value
    if not value:
        raise Reject("bad_part", f"the {kind} path is empty")
    if value[:5].lower() == "data:":
        return data_uri_bytes(value, kind)
    if reference.kind == "base64" or (kind == "image" and is_picture_text(value) and not _exists(value, roots)):
        return base64_bytes(value, value)
    if network and is_web(value):
        return fetch_media(value, network, max_bytes, kind)
    names = _file_names(value, percent_decode=reference.kind == "url")
    if beside:
        return read_beside(beside, names, value, max_bytes, allowed=network is not None)
    return _first_file(names, value, roots, take, looked, kind)


def _file_names(value: str, percent_decode: bool) -> list[str]:
    """File names to try in turn. A literal name wins over its percent-decoded form: `100%.jpg` is a name."""
    name = value
    if value[:5].lower() == "file:":
        name = value[5:]
        if name.startswith("//"):
            host, _, path = name[2:].partition("/")
            if host.lower() not in ("", "localhost"):
                raise Reject("absolute_path", f"{shown(value)} is on host {shown(host)}; expected a local path")
            name = f"/{path}"
    elif _URL.match(value):
        hint = ", or set allow_network" if is_web(value) else ""
        raise Reject("remote_url", f"{shown(value)} is on the network; download it and give its path{hint}")
    names = [name, unquote(name)] if percent_decode and "%" in name else [name]
    return names if value.isascii() else [reading for name in names for reading in readings(name)]


def _exists(name: str, roots: Sequence[Path]) -> bool:
    try:
        return any((root / name).is_file() for root in roots)
    except (OSError, ValueError):  # too long for a path, or no path at all
        return False


def _first_file(
    names: list[str],
    value: str,
    roots: Sequence[Path],
    take: Callable[[Path, os.stat_result], T],
    looked: Looked,
    kind: MediaKind,
) -> T:
    try:
        for path in files_named(names, value, roots, looked.folders):
            # Before it is read, so that a change while it is read is seen by the next build.
            status = _status(path)
            looked.files[str(path)] = _state(status)
            try:
                if status:
                    return take(path, status)
            except (FileNotFoundError, NotADirectoryError):
                continue
    except ValueError as error:  # a NUL byte, or half of a surrogate pair
        raise Reject("bad_part", f"{shown(value)} is not a path: {error}") from error
    except OSError as error:
        refuse_file_limit(error)
        if error.errno == errno.ENAMETOOLONG:
            hint = f"base64 data needs data:{kind}/TYPE;base64, before it"
            raise Reject("bad_part", f"{shown(value)} is too long for a path; {hint}") from error
        raise Reject("unreadable_file", f"{shown(value)} cannot be read: {error.strerror}") from error
    raise AssertionError("files_named ends with a Reject")


def state_of(file: Path) -> State:
    """The state of a file; NO_FILE where nothing is."""
    return _state(_status(file))


def _state(status: os.stat_result | None) -> State:
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns) if status else NO_FILE


def _status(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_regular(path: Path, status: os.stat_result, value: str, max_bytes: int) -> bytes:
    return _regular(path, status, value, max_bytes).read_bytes()


def _regular(path: Path, status: os.stat_result, value: str, max_bytes: int) -> Path:
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise Reject("not_a_file", f"{shown(value)} is {kind}; expected a file")
    if status.st_size == 0:
        raise Reject("empty_file", f"{shown(value)} has 0 bytes")
    _check_size(status.st_size, max_bytes, shown(value))
    return path


def _check_size(num_bytes: int, max_bytes: int, name: str) -> None:
    if num_bytes > max_bytes:
        raise Reject("file_too_large", f"{name} has {num_bytes} bytes; at most {max_bytes} are read")
