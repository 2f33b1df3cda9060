"""Entries of a picture column, and media of other columns and keys, which no part takes."""

import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from lmms.configs.words import counted
from lmms.prep.media.edit import png_of
from lmms.prep.media.read import ImageRef
from lmms.prep.records.absent import is_absent, is_null_image
from lmms.prep.records.media_names import Kind, is_media_file, media_kind
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject


class Bare:
    """The entries of a column such as `images`, in order: a part without a value takes the next entry."""

    def __init__(self, column: str, entries: Iterable[ImageRef]) -> None:
        self.column = column
        self.taken = 0
        """Entries that a part took."""
        self._entries = deque(entries)

    def take(self, place: str) -> ImageRef:
        """The next entry, for the bare part at this place."""
        if not self._entries:
            raise Reject("count_mismatch", f"a bare image part without an entry left in `{self.column}`", place)
        self.taken += 1
        return self._entries.popleft()

    def check_empty(self) -> None:
        """Reject for entries that no part took. A column `image` of which nothing was taken is for check_all_read."""
        if self._entries and (self.taken or self.column == "images"):
            more = counted(len(self._entries), "more entry", "more entries")
            message = f"`{self.column}` has {more} than there are bare image parts"
            raise Reject("count_mismatch", message, self.column)


def parse_images(raw: Mapping[str, Any]) -> Bare:
    """What the bare parts of a record take: the entries of `images`, or of `image` where there is no `images`.

    The column is a list, or a single picture; in a table it may also be a JSON list. Nulls in the list count for
    nothing. Raises Reject.
    """
    column = "image" if is_absent(raw.get("images")) and _entries(raw.get("image")) else "images"
    value = raw.get(column)
    if is_absent(value):
        return Bare(column, ())
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = json_list(value)
    if not isinstance(value, list):
        return Bare(column, [image_ref(value, column)])
    return Bare(column, [image_ref(v, f"{column}[{i}]") for i, v in enumerate(value) if not is_null_image(v)])


def image_ref(value: Any, place: str) -> ImageRef:
    """The picture that an entry names: a path, text with its bytes, bytes, or the struct {bytes, path} of datasets."""
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in ("bytes", "path")]
        if unknown:
            raise Reject("bad_part", f"key {unknown[0]!r} in an image struct; expected 'bytes' and 'path'", place)
        if isinstance(value.get("bytes"), str):  # JSON has no bytes
            return ImageRef("base64", value["bytes"])
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif type(value).__module__.startswith("PIL."):
        value = png_of(value)
    if isinstance(value, bytes):
        return ImageRef("bytes", value)
    if isinstance(value, str):
        return ImageRef("path", value)
    raise Reject(
        "bad_part", f"an image is {kind_of(value)}, expected a path, a data URI, base64, bytes or a PIL image", place
    )


def check_all_read(holder: Mapping[str, Any], read: Collection[str], taken: int, place: str = "") -> None:
    """Reject for a column of a record, or a key of a message, that names media which no part takes.

    read: columns or keys that were read. taken: pictures that the holder's parts have; a column of no more pictures
    only names them once more. place: of a message; "" for a record.
    """
    for key in holder:
        kind = media_kind(key)
        if kind is None or key in read:
            continue
        entries = _entries(holder[key])
        if kind == "file" and not is_media_file(holder[key]):
            entries = 0
        if entries and (kind == "moving" or entries > taken):
            message = (
                f"`{key}` names media that no part of the record takes; name them in parts, or in `images` for bare"
                " image parts; where tags <image> stand in the text, name the form of the source, such as form=llava"
            )
            raise Reject("unread_media", message, f"{place}.{key}" if place else str(key))


def check_nested(holder: Mapping[str, Any], parsed: Collection[str], taken: int, place: str = "") -> None:
    """Reject for media within a column of a record, or a key of a message, that nothing reads: `meta: {"image": ...}`.

    parsed: columns or keys that are read. Here a name is not enough: the value has to be a picture, a video or a sound,
    by the ending of a file's name or as bytes. taken, place: as in check_all_read.
    """
    for key, value in holder.items():
        if key in parsed or not isinstance(value, Mapping | list):
            continue
        for path, kind, entries in _nested(value, str(key)):
            if kind == "moving" or entries > taken:
                message = f"`{path}` names media that no part of the record takes; name them in parts"
                if kind == "still" and not place:
                    message += f", or map them to `images` for bare image parts: fields: {{images: [$.{path}]}}"
                raise Reject("unread_media", message, f"{place}.{path}" if place else path)


def _nested(value: Any, path: str) -> Iterator[tuple[str, Kind, int]]:
    """(path, kind, entries) of the media within a value, under names of media."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _nested(item, f"{path}[{i}]")
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        kind = media_kind(key)
        if kind and _is_media(item):
            yield f"{path}.{key}", kind, _entries(item)
        else:
            yield from _nested(item, f"{path}.{key}")


def _is_media(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_media, value))
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or is_media_file(value.get("path"))
    if isinstance(value, str) and value[:5].lower() == "data:":
        return True
    return isinstance(value, bytes) or is_media_file(value)


def _entries(value: Any) -> int:
    """How many pictures, videos or sounds a value names; a number or a boolean says something else."""
    if is_absent(value) or isinstance(value, bool | int | float):
        return 0
    return sum(_entries(entry) for entry in value) if isinstance(value, list) else 1


def json_list(text: str) -> Any:
    """The JSON list in a cell of text, else the text itself: a path may begin with a bracket."""
    try:
        return parse_json(text, "images")
    except Reject:
        return text
