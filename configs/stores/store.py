"""The files of a data set: in a folder of this node, which is read in place, or behind a URL (see RemoteStore)."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from lmms.configs.errors import ConfigError, DatasetError, nearest, refuse_file_limit
from lmms.configs.stores.remote import BLOCK, OBJECT_SCHEMES, RemoteStore, missing

_MODULES = {
    **dict.fromkeys(OBJECT_SCHEMES, ("obstore", "obstore")),
    "hf": ("huggingface_hub", "huggingface-hub"),
    "sftp": ("paramiko", "lmms[sftp]"),
    "oci": ("ocifs", "lmms[oci]"),
    "dbfs": ("databricks", "lmms[dbfs]"),
}
"""URL scheme -> (the module that reads such URLs, the package to install)."""


class Store(Protocol):
    """The files of one data set, by name. DatasetError for a file that is missing or cannot be read."""

    @property
    def where(self) -> str:
        """The folder or URL, for messages: without credentials."""

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file, if one request tells them; else None."""

    def read(self, name: str) -> bytes:
        """A whole file."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Some bytes of a file; fewer if the file ends earlier."""


@dataclass(frozen=True, slots=True)
class Cache:
    """The folder in which this node keeps shards from a URL, and the most bytes of them."""

    folder: Path
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder of this node."""

    folder: Path

    @property
    def where(self) -> str:
        return str(self.folder)

    def sizes(self) -> Mapping[str, int] | None:
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries}

    def read(self, name: str) -> bytes:
        return self.read_range(name, 0, -1)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        path = self.folder / name
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:
            raise missing(str(path)) from None
        except OSError as error:
            refuse_file_limit(error)
            raise DatasetError(f"{path} cannot be read ({error.strerror}); copy it again or rebuild") from error


def scheme_of(where: str | Path) -> str | None:
    """The kind of a URL in lower case, such as s3, known or not; None for a folder of this node."""
    url = re.match(r"(\w[\w+.-]+)://|(dbfs):/", str(where))
    return (url[1] or url[2]).lower() if url else None


def is_url(where: str | Path) -> bool:
    """Whether a place is read over the network, and is no folder of this node."""
    return scheme_of(where) is not None


def open_store(where: str | Path, retry_s: float) -> Store:
    """The store of a folder or URL. Checked at once: that the folder exists, or that the URL's module is installed.

    retry_s: seconds for which a failing store is asked again.
    """
    scheme = scheme_of(where)
    if scheme is None:
        folder = Path(where).expanduser()
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder; expected one that `lmms prep build-shards` wrote")
        return LocalStore(folder)
    if scheme not in _MODULES:
        raise ConfigError(f"{shown(str(where))}: unknown kind of URL {scheme!r}{nearest(scheme, _MODULES)}")
    module, package = _MODULES[scheme]
    if find_spec(module) is None:
        raise ConfigError(
            f"{shown(str(where))}: reading {scheme} URLs needs the module {module}; install it: pip install '{package}'"
        )
    return RemoteStore(shown(str(where)), scheme + str(where)[len(scheme) :].rstrip("/"), retry_s)


def shown(url: str) -> str:
    """A URL for people to read: without user, password and query, which may be credentials. A path stays as it is."""
    if "://" not in url:
        return url
    scheme, host, path, *_ = urlsplit(url)
    # in oci the part after @ is the namespace: oci://bucket@namespace/path
    return urlunsplit((scheme, host if scheme == "oci" else host.rpartition("@")[2], path.rstrip("/"), "", ""))


def shown_setting(value: Any) -> Any:
    """A setting and all nested values, for people to read: see shown."""
    if isinstance(value, Mapping):
        return {name: shown_setting(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown_setting(item) for item in value]
    return shown(value) if isinstance(value, str) else value


def setting_text(value: Any) -> str:
    """A setting as a text for a sentence, in the form of a run file; URLs are those of shown."""
    text = shown_setting(value)
    return text if isinstance(text, str) and text else json.dumps(text, ensure_ascii=False).replace('"', "")


def read_blocks(store: Store, name: str, size: int) -> Iterator[bytes]:
    """The bytes of a file, a few MB at a time; fewer than `size` if the file ends earlier."""
    for start in range(0, size, BLOCK):
        yield store.read_range(name, start, min(BLOCK, size - start))
