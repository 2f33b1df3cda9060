"""The pictures of a record: what a part or an entry of a column names."""

import os
from collections.abc import Mapping
from typing import Any

from lmms.prep.media.edit import png_of
from lmms.prep.media.read import MediaRef
from lmms.prep.records.absent import is_absent, is_null_image
from lmms.prep.records.media.bare import Bare
from lmms.prep.records.media.names import names_media
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject


def parse_images(raw: Mapping[str, Any]) -> Bare[MediaRef]:
    """What the bare parts of a record take: the entries of `images`, or of `image` where there is no `images`.

    The column is a list, or a single picture; in a table it may also be a JSON list. Nulls in the list count for
    nothing. Raises Reject.
    """
    column = "image" if is_absent(raw.get("images")) and names_media(raw.get("image")) else "images"
    value = raw.get(column)
    if is_absent(value):
        return Bare(column, ())
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        value = json_list(value)
    if not isinstance(value, list):
        return Bare(column, [image_ref(value, column)])
    return Bare(column, [image_ref(v, f"{column}[{i}]") for i, v in enumerate(value) if not is_null_image(v)])


def image_ref(value: Any, place: str, kind: str = "image") -> MediaRef:
    """The file that an entry names: a path, text with its bytes, bytes, or the struct {bytes, path} of datasets."""
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in ("bytes", "path")]
        if unknown:
            raise Reject("bad_part", f"key {unknown[0]!r} in the struct of a file; expected 'bytes' and 'path'", place)
        if isinstance(value.get("bytes"), str):  # JSON has no bytes
            return MediaRef("base64", value["bytes"])
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif type(value).__module__.startswith("PIL."):
        value = png_of(value)
    if isinstance(value, bytes):
        return MediaRef("bytes", value)
    if isinstance(value, str):
        return MediaRef("path", value)
    also = " or a PIL image" if kind == "image" else ""
    raise Reject("bad_part", f"the {kind} is {kind_of(value)}, expected a path, a data URI, base64, bytes{also}", place)


def json_list(text: str) -> Any:
    """The JSON list in a cell of text, else the text itself: a path may begin with a bracket."""
    try:
        return parse_json(text, "images")
    except Reject:
        return text
