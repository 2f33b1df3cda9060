"""Folders of object stores and web servers, through obstore."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import PermissionDeniedError
from obstore.store import HTTPStore, from_url

if TYPE_CHECKING:
    from obstore.store import RetryConfig

# obstore has retries too, but none when a body without an ETag breaks off: only RemoteStore retries and keeps the time.
_ONCE: "RetryConfig" = {"max_retries": 0}
_PARTS = 4
"""Parts of a file that are sent at once: a slow line has to get each of them through in 30 s."""


class Objects:
    """A Connection to s3://, gs://, az:// or http(s)://."""

    def __init__(self, url: str) -> None:
        self._has_list = not url.startswith("http")
        if self._has_list:
            self._client = from_url(
                url, retry_config=_ONCE
            )  # any client_options would hide the options of the environment
        else:
            self._client = HTTPStore.from_url(url, client_options={"allow_http": True}, retry_config=_ONCE)

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file; None from web servers, which have no list, and from a bucket that may not be listed."""
        if not self._has_list:
            return None
        try:
            entries = obstore.list_with_delimiter(self._client)["objects"]
        except PermissionDeniedError:
            return None
        return {entry["path"]: entry["size"] for entry in entries}

    def get(self, name: str, start: int, end: int) -> bytes:
        return bytes(obstore.get_range(self._client, name, start=start, end=end))

    def put(self, name: str, data: bytes | Path) -> None:
        """Write a file, whole or not at all, in place of one of this name. data: its bytes, or a file of this node."""
        obstore.put(self._client, name, data, max_concurrency=_PARTS)

    def delete(self, names: Sequence[str]) -> None:
        """Delete files; a file that is not there is no error."""
        obstore.delete(self._client, names)
