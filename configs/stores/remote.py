"""Files behind a URL, read by ranges.

    s3://, gs://, az://, http(s)://  through obstore, see Objects
    sftp://, hf://, oci://, dbfs:    through fsspec, see Files

Those libraries find the credentials; no message holds any. The libraries are loaded when the first file is read, since
`lmms.configs` has to load fast.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, cast

from lmms.configs.errors import DatasetError

if TYPE_CHECKING:
    from lmms.configs.stores.objects import Objects

T = TypeVar("T")

OBJECT_SCHEMES = ("s3", "gs", "az", "http", "https")
"""Kinds of URL that obstore reads; fsspec reads the others."""
WRITABLE_SCHEMES = ("s3", "gs", "az")
"""Kinds of URL that are also written."""
BLOCK = 8 * 2**20
"""Bytes of one request: few enough for a slow line to get in time."""
_PAUSES_S = (0.1, 15.0)
"""Pause after the first failure, and the longest pause after many."""

_FINAL_ERRORS = {
    *("FileNotFoundError", "PermissionError", "PermissionDeniedError", "UnauthenticatedError", "NotSupportedError"),
    *("InvalidPathError", "EntryNotFoundError", "RepositoryNotFoundError", "GatedRepoError", "ConfigFileNotFound"),
    *("AuthenticationException", "BadHostKeyException", "ImportError", "TypeError", "ValueError", "AssertionError"),
}
"""Errors that do not pass with time: names of their classes or bases, whose modules are not loaded here."""
_FINAL_ANSWERS = re.compile(r"redirect|known_hosts")
"""Errors that do not pass with time, by their text: an sftp host that is not known, a bucket of another region."""
_PAST_THE_END = 416

Aim = Literal["read", "written"]
"""What is done to a file, for the message if it fails."""


class Connection(Protocol):
    """A remote folder, for one thread of one process. Each library raises errors of other classes."""

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file, from one list; None if there is no list, or if the list may not be read."""

    def get(self, name: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file by one request; fewer if the file ends earlier, none or a status 416 if the file
        ends before `start`."""


@dataclass(frozen=True)
class RemoteStore:
    """A folder behind a URL. Each process and each thread has a connection of its own."""

    where: str
    url: str = field(repr=False)
    retry_s: float

    def sizes(self) -> Mapping[str, int] | None:
        """Bytes of every file, by one list, in which 10,000 shards are 10 requests. Without a list, a shard that is
        missing or short is found when its packs are read."""
        return self._ask(lambda connection: connection.sizes(), self.where)

    def read(self, name: str) -> bytes:
        blocks = [self._block(name, 0, BLOCK)]
        while len(blocks[-1]) == BLOCK:
            blocks.append(self._block(name, len(blocks) * BLOCK, (len(blocks) + 1) * BLOCK))
        return b"".join(blocks)

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        end = offset + size
        return b"".join([self._block(name, start, min(start + BLOCK, end)) for start in range(offset, end, BLOCK)])

    def write(self, name: str, data: bytes | Path) -> None:
        """Write a file, whole or not at all, in place of one of this name. Only for WRITABLE_SCHEMES.

        data: its bytes, or a file of this node. DatasetError if the file cannot be written.
        """
        self._ask(lambda connection: cast("Objects", connection).put(name, data), f"{self.where}/{name}", "written")

    def delete(self, names: Sequence[str]) -> None:
        """Delete files; one that is not there is no error. Only for WRITABLE_SCHEMES."""
        self._ask(lambda connection: cast("Objects", connection).delete(names), self.where, "written")

    def _block(self, name: str, start: int, end: int) -> bytes:
        def get(connection: Connection) -> bytes:
            try:
                return connection.get(name, start, end)
            except Exception as error:
                if _status(error) == _PAST_THE_END:
                    return b""
                raise

        return self._ask(get, f"{self.where}/{name}")

    def _ask(self, act: Callable[[Connection], T], place: str, aim: Aim = "read") -> T:
        """The result of `act` with this thread's connection, which is replaced after a failure."""

        def ask() -> T:
            connection = vars(self._threads).pop("connection", None) or _connect(self.url)
            answer = act(connection)
            self._threads.connection = connection
            return answer

        return patiently(ask, place, self.retry_s, aim)

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


def patiently(ask: Callable[[], T], place: str, seconds: float, aim: Aim = "read") -> T:
    """The result of `ask`; after a failure that may pass, `ask` is tried again for `seconds`, with growing pauses.

    DatasetError that names the place and the failure, without secrets.
    """
    until = time.monotonic() + seconds
    pause, longest = _PAUSES_S
    jitter = random.Random()  # a run's random numbers do not depend on a server
    while True:
        try:
            return ask()
        except Exception as error:  # noqa: BLE001  (each library has other errors, and no text of theirs may be shown unchanged)
            left = until - time.monotonic()
            if _is_missing(error) and aim == "read":
                raise missing(place) from None
            fault = f"{place} cannot be {aim}: {safe_text(error)}"
            if _is_missing(error) or _is_final(error):
                raise DatasetError(f"{fault}; check the URL and the credentials") from None
            if left <= 0:
                goes_on = " (data.retry_s); a run can be resumed when it is back" if aim == "read" else ""
                raise DatasetError(f"{fault}; tried for {seconds:g} s{goes_on}") from None
        time.sleep(min(pause * jitter.uniform(0.5, 1), left))
        pause = min(2 * pause, longest)


def safe_text(error: Exception) -> str:
    """The text of an error in one line, without addresses and answers of servers, which may hold credentials."""
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
    """The HTTP status behind an error: from the attributes of requests, httpx and Oracle's library, or from obstore's
    text."""
    for place in (getattr(error, "response", None), error, error.__cause__):
        for name in ("status_code", "status"):
            if isinstance(status := getattr(place, name, None), int):
                return status
    said = re.search(r"status code: (\d\d\d)", str(error))
    return int(said[1]) if said else None


def _names(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
