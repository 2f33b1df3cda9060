"""The entries of a column of media, such as `images`, which bare parts take in order."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from lmms.configs.words import counted
from lmms.prep.records.absent import is_absent, is_null_image
from lmms.prep.records.media.names import names_media
from lmms.prep.records.strict_json import parse_json
from lmms.prep.reject import Reject

T = TypeVar("T")


def tags_read(kind: str) -> str:
    """What to do where tags stand in the text in place of bare parts."""
    form = "swift" if kind == "audio" else "llava"
    return f"where tags <{kind}> stand in the text, name the form of the source, such as form={form}"


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
            message = f"`{self.column}` has {more} than there are bare {self.kind} parts; {tags_read(self.kind)}"
            raise Reject("count_mismatch", message, self.column)


def parse_column(raw: Mapping[str, Any], kind: str, parse: Callable[[Any, str], T]) -> Bare[T]:
    """What the bare parts of a kind take: the entries of `videos`, or of `video` where there is no `videos`; and so on.

    The column is a list, or a single entry; in a table it may also be a JSON list. Nulls in it count for nothing.
    parse: an entry and its place -> what a part takes. Raises Reject.
    """
    column = kind if is_absent(raw.get(f"{kind}s")) and names_media(raw.get(kind)) else f"{kind}s"
    value = raw.get(column)
    if is_absent(value):
        return Bare(column, (), kind)
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = json_list(value)
    if not isinstance(value, list):
        return Bare(column, [parse(value, column)], kind)
    return Bare(column, [parse(v, f"{column}[{i}]") for i, v in enumerate(value) if not is_null_image(v)], kind)


def json_list(text: str) -> Any:
    """The JSON list in a cell of text, else the text itself: a path may begin with a bracket."""
    try:
        return parse_json(text, "images")
    except Reject:
        return text
