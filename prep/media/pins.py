"""Pictures that came over the network, as they were: so that a later build can tell a picture that has changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeAlias

from lmms.prep.media.encoded import shown
from lmms.prep.reject import Reject

Pins: TypeAlias = Mapping[str, frozenset[str]]
"""URL -> the SHA-256 of the pictures that an earlier build found there: one, unless the server changed meanwhile."""


@dataclass(frozen=True, order=True, slots=True)
class Fetched:
    """A picture that came over the network."""

    url: str
    sha256: str
    """Hash of the bytes, in hexadecimal."""
    bytes: int
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels, as shown."""


def pinned(url: str, data: bytes, pins: Pins) -> Fetched:
    """The picture behind a URL. Raises Reject if an earlier build found another picture there."""
    fetched = Fetched(url, sha256(data).hexdigest(), len(data))
    before = pins.get(url)
    if before is not None and fetched.sha256 not in before:
        message = f"{shown(url)} has changed: its SHA-256 is {fetched.sha256}, the earlier build had {min(before)}"
        raise Reject("changed_image", message)
    return fetched
