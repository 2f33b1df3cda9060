"""Files behind a URL, read by ranges.

    s3://, gs://, az://, http(s)://  through obstore, see objects.py
    sftp://, hf://, oci://, dbfs:    through fsspec, see filesystems.py

Credentials are taken from where those libraries look for them; no message holds any. The libraries are loaded when the
first file is read: nothing on this floor may be heavy.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

from lmms.configs.errors import DatasetError

T = TypeVar("T")

OBJECT_SCHEMES = ("s3", "gs", "az", "http", "https")
"""Kinds of URL that obstore reads; fsspec reads the others."""
_BLOCK = 8 * 2**20
"""Bytes of one request, so that a slow line gets them in time."""
_PAUSES_S = (0.1, 15.0)
"""From the first failure to the next attempt, and after many."""

_FINAL_ERRORS = {
    *("FileNotFoundError", "PermissionError", "PermissionDeniedError", "UnauthenticatedError", "NotSupportedError"),
    *("InvalidPathError", "EntryNotFoundError", "RepositoryNotFoundError", "GatedRepoError", "ConfigFileNotFound"),
    *("AuthenticationException", "BadHostKeyException", "ImportError", "TypeError", "ValueError", "AssertionError"),
}
"""Errors that do not pass with time: names of their classes or bases, whose modules are not loaded here."""
_FINAL_ANSWERS = re.compile(r"redirect|known_hosts")
"""The same by what they say: an sftp host that is not known, a bucket of another region."""
_PAST_THE_END = 416


class Connection(Protocol):
    """A folder far away, for one thread of one process. Each library raises its own errors."""

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file, where one list tells them; None where there is no list, or it may not be asked for."""

    def get(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file by one request; fewer where the file ends before, none or a status 416 where it
        ends before `start`."""


@dataclass(frozen=True)
class RemoteStore:
    """A folder behind a URL. Each process that it is sent to connects for itself, and so does each thread."""

    where: str
    url: str = field(repr=False)
    retry_s: float

    def sizes(self) -> Mapping[str, int] | None:
        """By one list, in which 10,000 shards are 10 requests. A shard that is missing or short where there is no list
        is found when its packs are read."""
        return self._ask(lambda connection: connection.sizes(), self.where)

    def read(self, name: str) -> bytes:
        blocks = [self._block(name, 0, _BLOCK)]
        while len(blocks[-1]) == _BLOCK:
            blocks.append(self._block(name, len(blocks) * _BLOCK, (len(blocks) + 1) * _BLOCK))
        return b"".join(blocks)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        end = offset + size
        return b"".join([self._block(name, start, min(start + _BLOCK, end)) for start in range(offset, end, _BLOCK)])

    def _block(self, name: str, start: int, end: int) -> bytes:
        def get(connection: Connection) -> bytes:
            try:
                return connection.get(name, start, end)
            except Exception as error:
                if _status(error) == _PAST_THE_END:
                    return b""
                raise

        return self._ask(get, f"{self.where}/{name}")

    def _ask(self, act: Callable[[Connection], T], place: str) -> T:
        """What `act` does with this thread's connection, which is replaced after a failure."""

        def ask() -> T:
            connection = vars(self._threads).pop("connection", None) or _connect(self.url)
            answer = act(connection)
            self._threads.connection = connection
            return answer

        return patiently(ask, place, self.retry_s)

    @cached_property
    def _threads(self) -> threading.local:
        return threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteStore, (self.where, self.url, self.retry_s)


def _connect(url: str) -> Connection:
    if url.partition(":")[0] in OBJECT_SCHEMES:
        from lmms.configs.stores.objects import Objects

        return Objects(url)
    from lmms.configs.stores.filesystems import Files

    return Files(url)


def missing(place: str) -> DatasetError:
    """The error for a file that is not there."""
    return DatasetError(f"{place} is missing: the build or its copy did not finish; build or copy the shards again")


def patiently(ask: Callable[[], T], place: str, seconds: float) -> T:
    """What `ask` returns, tried again with growing pauses, for as long, where it fails in a way that may pass.

    DatasetError that names the place and what was seen, nothing of it secret.
    """
    until = time.monotonic() + seconds
    pause, longest = _PAUSES_S
    jitter = random.Random()  # a run's random numbers do not depend on a server
    while True:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001  (each library has its own, and none of them may be shown as it is)
            left = until - time.monotonic()
            if _is_missing(error):
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


def _is_missing(error: Exception) -> bool:
    return not _names(error).isdisjoint({"FileNotFoundError", "EntryNotFoundError"})


def _is_final(error: Exception) -> bool:
    status = _status(error)
    if status is not None:
        return 300 <= status < 500 and status not in (408, 429)
    return not _names(error).isdisjoint(_FINAL_ERRORS) or _FINAL_ANSWERS.search(str(error)) is not None


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error: where requests and httpx keep it, where Oracle's library does, or as obstore
    says it."""
    for place in (getattr(error, "response", None), error, error.__cause__):
        for name in ("status_code", "status"):
            if isinstance(status := getattr(place, name, None), int):
                return status
    said = re.search(r"status code: (\d\d\d)", str(error))
    return int(said[1]) if said else None


def _names(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
