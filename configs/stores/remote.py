"""Files behind a URL.

    s3://, gs://, az://, http(s)://  any range of a file, through obstore
    sftp://, hf://, oci://, dbfs:    whole files only, through the downloaders of mosaicml-streaming

Credentials are taken from where those libraries look for them; no message holds any. The libraries are loaded when the
first file is read: nothing on this floor may be heavy.
"""

import logging
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lmms.configs.errors import DatasetError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client
    from obstore.store import RetryConfig

T = TypeVar("T")

_BLOCK = 8 * 2**20
"""Bytes of one request, so that a slow line gets them in time."""
_REQUEST_S = 30.0
"""A request that takes longer has failed: obstore's own limit, given to the downloaders too."""
_PAUSES_S = (0.1, 15.0)
"""From the first failure to the next attempt, and after many."""

_FINAL_ERRORS = {
    *("FileNotFoundError", "PermissionError", "PermissionDeniedError", "UnauthenticatedError", "NotSupportedError"),
    *("InvalidPathError", "EntryNotFoundError", "RepositoryNotFoundError", "GatedRepoError"),
    *("AuthenticationException", "BadHostKeyException", "ImportError", "TypeError", "ValueError", "AssertionError"),
}
"""Errors that do not pass with time: names of their classes or bases, whose modules are not loaded here."""
_FINAL_ANSWERS = re.compile(r"status code: [34](?!08|29)\d\d|redirect|known_hosts")
"""The same by what they say: a status other than 408 and 429, an sftp host that is not known."""


@dataclass(frozen=True)
class ObjectStore:
    """A folder of an object store or a web server. Each process that it is sent to connects for itself."""

    where: str
    url: str = field(repr=False)
    retry_s: float

    def sizes(self) -> Mapping[str, int] | None:
        """By one list, in which 10,000 shards are 10 requests. None where there is none: web servers have no list, and
        a bucket may not allow it. A shard that is missing or short there is found when its packs are read."""
        import obstore
        from obstore.exceptions import PermissionDeniedError

        def ask() -> Mapping[str, int] | None:
            try:
                found = obstore.list_with_delimiter(self._client)["objects"]
            except PermissionDeniedError:
                return None
            return {entry["path"]: entry["size"] for entry in found}

        return None if self.url.startswith("http") else patiently(ask, self.where, self.retry_s)

    def read(self, name: str) -> bytes:
        import obstore

        def ask() -> tuple[bytes, int]:
            answer = obstore.get(self._client, name, options={"range": (0, _BLOCK)})
            return bytes(answer.bytes()), answer.meta["size"]

        first, size = patiently(ask, f"{self.where}/{name}", self.retry_s)
        return first + self.read_range(name, len(first), size - len(first))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        import obstore
        from obstore.exceptions import GenericError

        def ask(start: int) -> bytes:
            length = min(_BLOCK, offset + size - start)
            try:
                return bytes(obstore.get_range(self._client, name, start=start, length=length))
            except GenericError as error:
                if "status code: 416" in str(error):  # the file ends before
                    return b""
                raise

        starts = range(offset, offset + size, _BLOCK)
        return b"".join([patiently(partial(ask, start), f"{self.where}/{name}", self.retry_s) for start in starts])

    @cached_property
    def _client(self) -> "Client":
        from obstore.store import HTTPStore, from_url

        # obstore asks again as well, but not when a body without an ETag breaks off: one loop, ours, keeps the time.
        once: RetryConfig = {"max_retries": 0}
        if self.url.startswith("http"):
            return HTTPStore.from_url(self.url, client_options={"allow_http": True}, retry_config=once)
        return from_url(self.url, retry_config=once)  # any client_options would hide those of the environment


@dataclass(frozen=True, slots=True)
class FileStore:
    """A folder from which only whole files can be had."""

    where: str
    url: str = field(repr=False)
    retry_s: float

    def sizes(self) -> Mapping[str, int] | None:
        """None: the downloaders do not tell."""
        return None

    def read(self, name: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "data")
            self.download(name, path)
            return path.read_bytes()

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        raise DatasetError(f"{self.where}/{name} can only be had whole: set data.cache, or copy the shards to a folder")

    def download(self, name: str, path: Path) -> None:
        """The file, to this path, in a folder of its own: some downloaders leave more than the file beside it."""
        from streaming.base.storage import CloudDownloader

        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs each failure with its stack, and raises it

        def ask() -> None:
            path.unlink(missing_ok=True)
            downloader = CloudDownloader.get(self.url)
            try:
                downloader.download(f"{self.url}/{name}", str(path), _REQUEST_S)
            finally:
                downloader.clean_up()

        patiently(ask, f"{self.where}/{name}", self.retry_s)


def missing(place: str) -> DatasetError:
    """The error for a file that is not there."""
    return DatasetError(f"{place} is missing: the build or its copy did not finish; build or copy the shards again")


def patiently(ask: Callable[[], T], place: str, seconds: float) -> T:
    """What `ask` returns, tried again with growing pauses, for as long, where it fails in a way that may pass.

    DatasetError that names the place and what was seen, nothing of it secret.
    """
    until = time.monotonic() + seconds
    pause, longest = _PAUSES_S
    jitter = random.Random()  # its own: a run's random numbers do not depend on a server
    while True:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001  (each library has its own, and none of them may be shown as it is)
            left = until - time.monotonic()
            if _is_final(error) and isinstance(error, FileNotFoundError):
                raise missing(place) from None
            if _is_final(error):
                raise DatasetError(
                    f"{place} cannot be read: {seen(error)}; check the URL and the credentials"
                ) from None
            if left <= 0:
                raise DatasetError(
                    f"{place} cannot be read: {seen(error)}; tried for {seconds:g} s (data.retry_s);"
                    " a run can be resumed when it is back"
                ) from None
        time.sleep(min(pause * jitter.uniform(0.5, 1), left))
        pause = min(2 * pause, longest)


def seen(error: Exception) -> str:
    """What an error says, in one line, without addresses and what servers send back: they may hold credentials."""
    text, _, details = str(error).partition("\n\nDebug source")
    said = re.split(r"[\n<{]", text)[0].rpartition(" - ")[2].strip(" :")
    reasons = re.findall(r"<Code>(\w+)</Code>", text) + re.findall(r'(?:message|error): "([^"\\]*)"', details)
    if "TimedOut" in details:
        reasons.append("timed out")
    said = " ".join([said, *(f"({reason})" for reason in reasons)])
    return re.sub(r"\S+://\S+", "...", said).strip() or type(error).__name__


def _is_final(error: Exception) -> bool:
    names = _names(error)
    if "LocalEntryNotFoundError" in names:  # the hub was not reached, and the file is not on this node
        return False
    return not names.isdisjoint(_FINAL_ERRORS) or _FINAL_ANSWERS.search(str(error)) is not None


def _names(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
