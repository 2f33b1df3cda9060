"""A part of a message, or an entry of `images` -> Text or Image, or a Reject that names the key and the place."""

from collections.abc import Mapping
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


def parse_part(part: Any, place: str, images: list[ImageRef]) -> tuple[Part, list[ImageRef]]:
    """The typed part, and the entries of `images` that are left; a bare image part takes the first of them."""
    if not isinstance(part, Mapping):
        raise Reject("part_not_object", f"a part is {kind_of(part)}, expected an object", place)
    kind = part.get("type")
    if not isinstance(kind, str | None):
        raise Reject("unknown_part_type", f"`type` is {kind_of(kind)}, expected a string", place)
    if kind in _LATER_PARTS:
        raise Reject(_LATER_PARTS[kind], f"a part of type {kind!r}; this version cannot use it yet", place)
    if kind not in _PART_KEYS:
        found = f"type {kind!r}" if kind is not None else f"no `type`; found the keys {', '.join(map(str, part))}"
        raise Reject("unknown_part_type", f"{found}{nearest(str(kind), _PART_KEYS)}", place)
    # A row of a table has every key of its struct, null where another part uses it.
    unknown = [key for key, value in part.items() if value is not None and key not in ("type", *_PART_KEYS[kind])]
    if unknown:
        raise Reject("bad_part", f"key {unknown[0]!r} in a part of type {kind!r}; expected {kind!r}", place)
    value = part.get(kind)
    if kind == "text":
        return Text(_text(value, place)), images
    if kind == "image_url":
        return Image(ImageRef("url", _url(value, place)), place), images
    if value is not None:
        return Image(_image_ref(value, place), place), images
    if not images:
        raise Reject("count_mismatch", "a bare image part without an entry left in `images`", place)
    return Image(images[0], place), images[1:]


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
