"""The entries of a column of media, such as `images`, which bare parts take in order."""

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

from lmms.configs.words import counted
from lmms.prep.reject import Reject

T = TypeVar("T")


class Bare(Generic[T]):
    """The entries of a column such as `images`, in order: a part without a value takes the next entry."""

    def __init__(self, column: str, entries: Iterable[T], kind: str = "image") -> None:
        self.column = column
        self.kind = kind
        self.taken = 0
        """Entries that a part took."""
        self._entries = deque(entries)

    def take(self, place: str) -> T:
        """The next entry, for the bare part at this place."""
        if not self._entries:
            message = f"a bare {self.kind} part without an entry left in `{self.column}`"
            raise Reject("count_mismatch", message, place)
        self.taken += 1
        return self._entries.popleft()

    def check_empty(self) -> None:
        """Reject for entries that no part took. A column `image` of which nothing was taken is for check_all_read."""
        if self._entries and (self.taken or self.column.endswith("s")):
            more = counted(len(self._entries), "more entry", "more entries")
            message = f"`{self.column}` has {more} than there are bare {self.kind} parts"
            raise Reject("count_mismatch", message, self.column)
