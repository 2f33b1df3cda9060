"""Databricks' files as a file system of fsspec: volumes (dbfs:/Volumes/...) and the older DBFS (dbfs:/...).

fsspec's own file system for Databricks reads no volumes and logs in by a token only. Databricks' library knows every
way to log in.
"""

import logging
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import requests
from databricks.sdk.core import Config
from fsspec import AbstractFileSystem

logging.getLogger("databricks.sdk").setLevel(logging.ERROR)  # the library warns of each address that does not answer

_DBFS_BYTES = 2**20
"""Most bytes of one answer of the older DBFS."""


class Databricks(AbstractFileSystem):  # type: ignore[misc]
    """The login is that of Databricks' library: DATABRICKS_HOST and _TOKEN, ~/.databrickscfg, or the cluster's."""

    def __init__(self, request_s: float, **options: Any) -> None:
        super().__init__(**options)
        self._config = Config(http_timeout_seconds=request_s, retry_timeout_seconds=1)  # RemoteStore tries again
        self._session = requests.Session()
        self._request_s = request_s

    def ls(self, path: str, detail: bool = True, **ignored: Any) -> list[dict[str, Any]]:
        if path.startswith("/Volumes/"):
            files = [(e["path"], e.get("file_size", 0)) for e in self._pages(path) if not e["is_directory"]]
        else:
            entries = self._ask("dbfs/list", {"path": path}).json().get("files", [])
            files = [(e["path"], e["file_size"]) for e in entries if not e["is_dir"]]
        return [{"name": name, "size": size, "type": "file"} for name, size in files]

    def _pages(self, path: str) -> Iterator[dict[str, Any]]:
        page: dict[str, str] = {}
        while True:
            answer = self._ask(f"fs/directories{path}", page).json()
            yield from answer.get("contents", [])
            if not (following := answer.get("next_page_token")):
                return
            page = {"page_token": following}

    def cat_file(self, path: str, start: int, end: int, **ignored: Any) -> bytes:
        if path.startswith("/Volumes/"):
            answer = self._ask(f"fs/files{path}", {}, {"Range": f"bytes={start}-{end - 1}"})
            return bytes(answer.content)
        parts = [self._read(path, offset, min(_DBFS_BYTES, end - offset)) for offset in range(start, end, _DBFS_BYTES)]
        return b"".join(parts)

    def _read(self, path: str, offset: int, length: int) -> bytes:
        answer = self._ask("dbfs/read", {"path": path, "offset": offset, "length": length}).json()
        return b64decode(answer.get("data", ""))

    def _ask(self, what: str, query: dict[str, Any], headers: dict[str, str] | None = None) -> requests.Response:
        """The answer to one request. FileNotFoundError for a missing file, requests' errors for all other failures."""
        answer = self._session.get(
            f"{self._config.host}/api/2.0/{what}",
            params=query,
            headers={**self._config.authenticate(), **(headers or {})},
            timeout=self._request_s,
        )
        if answer.status_code == 404:
            raise FileNotFoundError(what)
        answer.raise_for_status()
        return answer
