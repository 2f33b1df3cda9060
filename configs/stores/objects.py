"""Folders of object stores and web servers, through obstore."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import PermissionDeniedError
from obstore.store import HTTPStore, from_url

if TYPE_CHECKING:
    from obstore.store import RetryConfig

# obstore has retries too, but none when a body without an ETag breaks off: only RemoteStore retries and keeps the time.
_ONCE: "RetryConfig" = {"max_retries": 0}


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
