"""Where the files of a data set are: a folder of this node, which is read in place, or a URL (see remote.py)."""

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
from lmms.configs.stores.remote import FileStore, ObjectStore, missing

_MODULES = {
    **dict.fromkeys(("s3", "gs", "az", "http", "https"), ("obstore",)),
    "sftp": ("streaming", "paramiko"),
    "hf": ("streaming", "huggingface_hub"),
    "oci": ("streaming", "oci"),
    "dbfs": ("streaming", "databricks"),
}
"""URL scheme -> modules that read it; those of the first line read any range of a file, the others whole files."""
_BLOCK = 8 * 2**20


class Store(Protocol):
    """The files of one data set, by name. DatasetError where one is missing or cannot be read."""

    @property
    def where(self) -> str:
        """The folder or URL, for messages: without credentials."""

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file, where one question answers that."""

    def read(self, name: str) -> bytes:
        """A whole file."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Some bytes of a file; fewer where it ends before them."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Where this node keeps shards that were read from a URL, and how many bytes of them."""

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


def open_store(where: str | Path, retry_s: float) -> Store:
    """The store of a folder or URL. Nothing is asked of it yet, but that there is such a folder, or a way to read it.

    retry_s: seconds for which a store that fails is asked again.
    """
    url = re.match(r"(\w[\w+.-]+)://|(dbfs):/", str(where))
    if url is None:
        folder = Path(where).expanduser()
        if not folder.is_dir():
            raise DatasetError(f"{folder} is not a folder; expected one that `lmms prep build-shards` wrote")
        return LocalStore(folder)
    scheme = (url[1] or url[2]).lower()
    if scheme not in _MODULES:
        raise ConfigError(f"{shown(str(where))}: unknown kind of URL {scheme!r}{nearest(scheme, _MODULES)}")
    for module in _MODULES[scheme]:
        if find_spec(module) is None:
            extra = " (of the extra `streaming`)" if "streaming" in _MODULES[scheme] else ""
            raise ConfigError(
                f"{shown(str(where))}: reading {scheme} URLs needs the module {module}{extra}; install it"
            )
    kind = ObjectStore if "obstore" in _MODULES[scheme] else FileStore
    return kind(shown(str(where)), scheme + str(where)[len(scheme) :].rstrip("/"), retry_s)


def shown(url: str) -> str:
    """A URL for people to read: without the user, password and query, which may be credentials. A path stays."""
    if "://" not in url:
        return url
    scheme, host, path, *_ = urlsplit(url)
    # oci has its namespace there: oci://bucket@namespace/path
    return urlunsplit((scheme, host if scheme == "oci" else host.rpartition("@")[2], path.rstrip("/"), "", ""))


def shown_setting(value: Any) -> Any:
    """A setting for people to read, with all that is in it: see shown."""
    if isinstance(value, Mapping):
        return {name: shown_setting(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown_setting(item) for item in value]
    return shown(value) if isinstance(value, str) else value


def setting_text(value: Any) -> str:
    """A setting in a sentence, as it may stand in a run file; with all that is in it, see shown."""
    text = shown_setting(value)
    return text if isinstance(text, str) and text else json.dumps(text, ensure_ascii=False).replace('"', "")


def read_blocks(store: Store, name: str, size: int) -> Iterator[bytes]:
    """The bytes of a file, a few MB at a time; fewer than `size` where it ends before."""
    for start in range(0, size, _BLOCK):
        yield store.read_range(name, start, min(_BLOCK, size - start))
