"""Folders behind the URLs that obstore does not know, through fsspec: hf://, oci://, sftp:// and dbfs:."""

import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from fsspec import AbstractFileSystem

_REQUEST_S = 30.0
"""A request that takes longer has failed: obstore's limit, given to these libraries too."""


class Files:
    """A Connection to a folder of an fsspec file system."""

    def __init__(self, url: str) -> None:
        scheme = url.partition(":")[0]
        self._system, self._folder = _OPENERS[scheme](url)

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file; None if the folder may be read but not listed."""
        try:
            entries = self._system.ls(self._folder, detail=True)
        except PermissionError:
            return None
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}

    def get(self, name: str, start: int, end: int) -> bytes:
        # With `size`, fsspec does not look the file up first; without a cache, fsspec reads no more bytes than these.
        data: bytes = self._system.cat_file(f"{self._folder}/{name}", start, end, cache_type="none", size=end)
        return data


# Each opener makes a new file system (skip_instance_cache), so that a failure leads to a new connection.


def _open_hf(url: str) -> tuple[AbstractFileSystem, str]:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(skip_instance_cache=True, use_listings_cache=False), url.removeprefix("hf://")


def _open_oci(url: str) -> tuple[AbstractFileSystem, str]:
    """The login is that of ~/.oci/config, unless OCIFS_IAM_TYPE and related variables name another."""
    from oci.retry import NoneRetryStrategy
    from ocifs import OCIFileSystem

    system = OCIFileSystem(
        iam_type=os.environ.get("OCIFS_IAM_TYPE", "api_key"),
        config_kwargs={"timeout": _REQUEST_S, "retry_strategy": NoneRetryStrategy()},
        skip_instance_cache=True,
    )
    return system, url.removeprefix("oci://")


def _open_sftp(url: str) -> tuple[AbstractFileSystem, str]:
    from lmms.configs.stores.sftp import Sftp

    parts = urlsplit(url)
    login = {"username": unquote(parts.username or "") or None, "password": unquote(parts.password or "") or None}
    system = Sftp(parts.hostname or "", port=parts.port or 22, timeout=_REQUEST_S, skip_instance_cache=True, **login)
    return system, parts.path or "/."  # an empty name would be a file's


def _open_dbfs(url: str) -> tuple[AbstractFileSystem, str]:
    from lmms.configs.stores.databricks import Databricks

    return Databricks(_REQUEST_S, skip_instance_cache=True), "/" + url.removeprefix("dbfs:").strip("/")


_OPENERS = {"hf": _open_hf, "oci": _open_oci, "sftp": _open_sftp, "dbfs": _open_dbfs}
