"""The pictures of a record: what a part or an entry of a column names."""

import os
from collections.abc import Mapping
from typing import Any

from lmms.prep.media.edit import png_of
from lmms.prep.media.read import MediaRef
from lmms.prep.records.media.bare import Bare, parse_column
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject


def parse_images(raw: Mapping[str, Any]) -> Bare[MediaRef]:
    """What the bare parts of a record take: the entries of `images`, or of `image` where there is no `images`.

    The column is a list, or a single picture; in a table it may also be a JSON list. Nulls in the list count for
    nothing. Raises Reject.
    """
    return parse_column(raw, "image", image_ref)


def image_ref(value: Any, place: str, kind: str = "image") -> MediaRef:
    """The file that an entry names: a path, text with its bytes, bytes, or the struct {bytes, path} of datasets."""
    if isinstance(value, Mapping):
        unknown = [key for key in value if key not in ("bytes", "path")]
        if unknown == ["array", "sampling_rate"]:
            message = "samples that were decoded already; keep the file, as Audio(decode=False) of datasets does"
            raise Reject("bad_part", message, place)
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
    also = "base64, bytes or a PIL image" if kind == "image" else "or bytes"
    raise Reject("bad_part", f"the {kind} is {kind_of(value)}, expected a path, a data URI, {also}", place)
