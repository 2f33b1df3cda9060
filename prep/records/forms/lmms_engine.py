"""LMMs-Engine: OpenAI chat with parts image_url, video_url, audio_url; with a column `image`, that holds the pictures.

Its Hugging Face data sets keep the pictures in `image` (one, or a list), in the order of the parts; the address in such
a part is a name only.
"""

from collections.abc import Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import check_counts, listed, media, missing, peeked_parts

_IMAGES = ("image", "images")


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("messages") is None:
        raise missing(record, "`messages`")
    entries = media({name: record.get(name) for name in _IMAGES})
    if not entries:
        return Normal(renamed(record, _IMAGES))
    messages = [_bare(message) for message in listed(record, "messages")]
    check_counts([message for message in messages if isinstance(message, dict) and "content" in message], entries)
    return Normal(renamed(record, _IMAGES, messages=messages, **entries))


def _bare(message: Any) -> Any:
    """The message, with a bare part for each address of a picture."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
        return message
    return {**message, "content": [_place(part) if _is_picture(part) else part for part in message["content"]]}


def _place(part: Mapping[str, Any]) -> dict[str, Any]:
    """The place of a picture: the part without the address, with the size that the part asks for."""
    return {**{key: value for key, value in part.items() if key != "image_url"}, "type": "image"}


def _is_picture(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "image_url"


def _fits(record: Mapping[str, Any]) -> bool:
    return "messages" in record


def _marks(record: Mapping[str, Any]) -> bool:
    return any(map(_is_picture, peeked_parts(record))) and any(_is_embedded(record.get(name)) for name in _IMAGES)


def _is_embedded(value: Any) -> bool:
    """Whether a column holds pictures as the package datasets has them; a path may only repeat the part's."""
    return isinstance(value, bytes | Mapping) or (isinstance(value, list) and any(map(_is_embedded, value)))


FORM = Form(("messages",), _fits, _read, _marks)
