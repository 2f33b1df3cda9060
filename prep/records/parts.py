"""A part of a message, or an entry of `images` -> Text or Image, or a Reject that names the key and the place."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lmms.configs.errors import nearest
from lmms.prep.media.read import ImageRef
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

_PART_KEYS = {"text": ("text",), "image": ("image",), "image_url": ("image_url",)}
_LATER_PARTS = {
    **dict.fromkeys(("video", "video_url"), "later_video"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "later_audio"),
}


@dataclass(frozen=True, slots=True)
class Text:
    """A text part."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image part: where its bytes come from."""

    ref: ImageRef
    place: str


Part = Text | Image


class Bare:
    """The entries of a column such as `images`, in order: a part without a value takes the next entry."""

    def __init__(self, column: str, entries: Iterable[ImageRef]) -> None:
        self.column = column
        self._entries = deque(entries)

    def take(self, place: str) -> ImageRef:
        """The next entry, for the bare part at this place."""
        if not self._entries:
            raise Reject("count_mismatch", f"a bare image part without an entry left in `{self.column}`", place)
        return self._entries.popleft()

    def check_empty(self) -> None:
        """Reject for entries that no part took."""
        if self._entries:
            message = f"`{self.column}` has {len(self._entries)} more entries than there are bare image parts"
            raise Reject("count_mismatch", message, self.column)


def parse_images(images: Any) -> list[ImageRef]:
    """The `images` column."""
    if images is None:
        return []
    if not isinstance(images, list):
        raise Reject("bad_part", f"`images` is {kind_of(images)}, expected a list", "images")
    return [_image_ref(image, f"images[{i}]") for i, image in enumerate(images)]


def _image_ref(value: Any, place: str) -> ImageRef:
    if isinstance(value, Mapping):  # Hugging Face Image: struct{bytes, path}
        unknown = [key for key in value if key not in ("bytes", "path")]
        if unknown:
            raise Reject("bad_part", f"key {unknown[0]!r} in an image struct; expected 'bytes' and 'path'", place)
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return ImageRef("bytes", value)
    if isinstance(value, str):
        return ImageRef("path", value)
    raise Reject("bad_part", f"an image is {kind_of(value)}, expected a path, a data URI or bytes", place)


def parse_part(part: Any, place: str, images: Bare) -> Part:
    """The typed part; a bare image part takes the next entry of `images`."""
    if not isinstance(part, Mapping):
        raise Reject("part_not_object", f"a part is {kind_of(part)}, expected an object", place)
    kind = part.get("type")
    if not isinstance(kind, str | None):
        raise Reject("unknown_part_type", f"`type` is {kind_of(kind)}, expected a string", place)
    if kind in _LATER_PARTS:
        raise Reject(_LATER_PARTS[kind], f"a part of type {kind!r}; this version cannot use it yet", place)
    if kind not in _PART_KEYS:
        given = f"type {kind!r}" if kind is not None else f"no `type`; found the keys {', '.join(map(str, part))}"
        raise Reject("unknown_part_type", f"{given}{nearest(str(kind), _PART_KEYS)}", place)
    # A row of a table has every key of its struct, null where another part uses it.
    unknown = [key for key, value in part.items() if value is not None and key not in ("type", *_PART_KEYS[kind])]
    if unknown:
        raise Reject("bad_part", f"key {unknown[0]!r} in a part of type {kind!r}; expected {kind!r}", place)
    value = part.get(kind)
    if kind == "text":
        return Text(_text(value, place))
    if kind == "image_url":
        return Image(ImageRef("url", _url(value, place)), place)
    return Image(images.take(place) if value is None else _image_ref(value, place), place)


def _text(value: Any, place: str) -> str:
    if value is None:
        raise Reject("part_missing_field", "a text part without `text`", place)
    if not isinstance(value, str):
        raise Reject("bad_part", f"`text` is {kind_of(value)}, expected a string", place)
    return value


def _url(value: Any, place: str) -> str:
    if isinstance(value, Mapping):
        unknown = [key for key, v in value.items() if v is not None and key not in ("url", "detail")]
        if unknown:
            raise Reject("bad_part", f"key {unknown[0]!r} in `image_url`; expected 'url'", place)
        value = value.get("url")
    if value is None:
        raise Reject("part_missing_field", "an image_url part without `url`", place)
    if not isinstance(value, str):
        raise Reject("bad_part", f"`url` is {kind_of(value)}, expected a string", place)
    return value
