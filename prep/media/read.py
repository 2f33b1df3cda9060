"""The bytes of an image: from a path under the media root, a data: URI or a binary column. Never from the network.

Only regular files are read, and only those under the root, in spite of `..`, links and absolute paths.
"""

import binascii
import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from lmms.configs.errors import refuse_file_limit
from lmms.prep.reject import Reject

MAX_IMAGE_BYTES = 256 * 2**20
"""Largest image file read by default."""

_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image as the record names it."""

    kind: Literal["path", "url", "bytes"]
    """path: of an `image` part or an `images` column; url: of an `image_url` part; bytes: of a binary column."""
    value: str | bytes

    def __post_init__(self) -> None:
        if isinstance(self.value, bytes) != (self.kind == "bytes"):
            raise TypeError(f"an image of kind {self.kind!r} cannot hold a {type(self.value).__name__}")


def read_image(reference: ImageRef, root: Path, max_bytes: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of the image file, never empty. Paths are relative to `root`. Raises Reject."""
    value = reference.value
    if isinstance(value, bytes):
        data = value
    elif not value:
        raise Reject("bad_part", "the image path is empty")
    elif value[:5].lower() == "data:":
        data = _data_uri_bytes(value)
    else:
        names = _file_names(value, percent_decode=reference.kind == "url")
        data = _first_file(names, value, root, max_bytes)
    if not data:
        raise Reject("empty_file", f"the image ({reference.kind}) has 0 bytes")
    _check_size(len(data), max_bytes, "the image")
    return data


def _data_uri_bytes(uri: str) -> bytes:
    header, comma, payload = uri[5:].partition(",")
    mime, *parameters = (field.strip().lower() for field in header.split(";"))
    if not comma:
        raise Reject("bad_data_uri", f"{_shown(uri)} has no comma; expected data:image/TYPE;base64,DATA")
    if not mime.startswith("image/"):
        raise Reject("bad_data_uri", f"the data: URI is of type {_shown(mime)}; expected image/TYPE")
    if "base64" not in parameters:
        raise Reject("bad_data_uri", f"{_shown(uri)} is not base64; expected data:image/TYPE;base64,DATA")
    # A URI may be percent-encoded or wrapped; base64 itself has neither percent signs nor white space.
    payload = "".join(unquote(payload).split())
    if not payload:
        raise Reject("bad_data_uri", f"{_shown(uri)} holds no data")
    try:
        return binascii.a2b_base64(payload, strict_mode=True)
    except ValueError as error:
        raise Reject("bad_data_uri", f"{_shown(uri)} is not base64: {error}") from error


def _file_names(value: str, percent_decode: bool) -> list[str]:
    """File names to try in turn. A literal name wins over its percent-decoded form: `100%.jpg` is a name."""
    name = value
    if value[:5].lower() == "file:":
        name = value[5:]
        if name.startswith("//"):
            host, _, path = name[2:].partition("/")
            if host.lower() not in ("", "localhost"):
                raise Reject("absolute_path", f"{_shown(value)} is on host {_shown(host)}; expected a local path")
            name = f"/{path}"
    elif _URL.match(value):
        raise Reject("remote_url", f"{_shown(value)} is on the network; download it and give its path")
    return [name, unquote(name)] if percent_decode and "%" in name else [name]


def _first_file(names: list[str], value: str, root: Path, max_bytes: int) -> bytes:
    for name in names:
        try:
            return _read_regular(_inside(name, value, root), value, max_bytes)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except ValueError as error:  # a NUL byte, or half of a surrogate pair
            raise Reject("bad_part", f"{_shown(value)} is not a path: {error}") from error
        except OSError as error:
            refuse_file_limit(error)
            if error.errno == errno.ENAMETOOLONG:
                hint = "base64 data needs data:image/TYPE;base64, before it"
                raise Reject("bad_part", f"{_shown(value)} is too long for a path; {hint}") from error
            raise Reject("unreadable_file", f"{_shown(value)} cannot be read: {error.strerror}") from error
    raise Reject("missing_file", f"{_shown(value)} does not exist under {root}")


def _inside(name: str, value: str, root: Path) -> Path:
    """The file behind all links and `..`, if it is under the root."""
    path = Path(os.path.realpath(root / name))
    if not path.is_relative_to(os.path.realpath(root)):
        reason = "absolute_path" if name.startswith("/") else "path_outside_root"
        raise Reject(reason, f"{_shown(value)} leads out of the media root {root}; move it, or set media_root")
    return path


def _read_regular(path: Path, value: str, max_bytes: int) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise Reject("not_a_file", f"{_shown(value)} is {kind}; expected an image file")
    if status.st_size == 0:
        raise Reject("empty_file", f"{_shown(value)} has 0 bytes")
    _check_size(status.st_size, max_bytes, _shown(value))
    return path.read_bytes()


def _check_size(num_bytes: int, max_bytes: int, name: str) -> None:
    if num_bytes > max_bytes:
        raise Reject("file_too_large", f"{name} has {num_bytes} bytes; at most {max_bytes} are read")


def _shown(value: str) -> str:
    """A value as a message quotes it: short, on one line."""
    return repr(value if len(value) <= 100 else f"{value[:97]}...")
