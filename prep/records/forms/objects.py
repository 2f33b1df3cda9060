"""Dense captions: {image, width, height, objects: [{bbox_2d: [x1, y1, x2, y2], label}], summary}.

The conversation is a question and the list of objects as JSON, with the coordinates as the model writes them. Boxes and
points are in pixels of the picture; `width` and `height`, where they are there, have to be the picture's.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lmms.prep.records.normal.form import Form, Normal, Roles, renamed
from lmms.prep.records.normal.turns import media, missing, peeked
from lmms.prep.records.shapes import Size, parse_shape
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject

QUESTION = "Locate every object in the image and list them as JSON."
"""What the user asks, unless the transform `prompts` says otherwise."""
_BOXES = ("bbox_2d", "bbox")
_POINTS = ("point_2d", "point", "points", "line", "poly", "quad")
_READ = ("image", "images", "width", "height", "objects")


def _read(record: Mapping[str, Any], _roles: Roles) -> Normal:
    if record.get("objects") is None:
        raise missing(record, "`objects`")
    entries = media(record)
    pictures = entries.get("images", [])
    if len(pictures) != 1:
        raise Reject("count_mismatch", f"objects of {len(pictures)} pictures; expected one picture a record", "images")
    answer = list(_answer(_list(record["objects"]), _stated(record)))
    question = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    column = "image" if record.get("image") is not None else "images"
    return Normal(renamed(record, _READ, messages=turns, **entries), (column, "objects"))


def _list(objects: Any) -> list[Any]:
    if isinstance(objects, str):
        objects = parse_json(objects, "objects")
    if not isinstance(objects, list):
        raise Reject("bad_box", f"`objects` is {kind_of(objects)}, expected a list of objects with boxes", "objects")
    return objects


def _stated(record: Mapping[str, Any]) -> Size | None:
    width, height = record.get("width"), record.get("height")
    if width is None and height is None:
        return None
    if not all(isinstance(side, int | float) and side >= 1 and side % 1 == 0 for side in (width, height)):
        raise Reject("bad_box", f"width {width!r} and height {height!r}; expected whole numbers above 0", "width")
    return int(width), int(height)  # type: ignore[arg-type]


def _answer(objects: list[Any], stated: Size | None) -> Iterator[Any]:
    """Texts and shapes whose sequence is the JSON of the objects."""
    text = "["
    for i, item in enumerate(objects):
        place = f"objects[{i}]"
        if not isinstance(item, Mapping):
            raise Reject("bad_box", f"an object is {kind_of(item)}, expected a mapping with a box and a label", place)
        filled = {key: value for key, value in item.items() if value is not None}
        if not any(key in filled for key in (*_BOXES, *_POINTS)):
            keys = ", ".join(map(str, filled)) or "none"
            raise Reject("bad_box", f"an object with the keys {keys}; expected one of {', '.join(_BOXES)}, ...", place)
        text += "{" if i == 0 else ", {"
        for number, (key, value) in enumerate(filled.items()):
            text += f"{', ' if number else ''}{json.dumps(key, ensure_ascii=False)}: "
            if key in (*_BOXES, *_POINTS):
                yield {"type": "text", "text": text}
                yield parse_shape("box" if key in _BOXES else "points", value, 0, f"{place}.{key}", stated=stated)
                text = ""
            else:
                text += _json(value, f"{place}.{key}")
        text += "}"
    yield {"type": "text", "text": text + "]"}


def _json(value: Any, place: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:  # a table has types that JSON lacks
        raise Reject("bad_box", f"a value of type {type(value).__name__} has no form in JSON", place) from None


def _fits(record: Mapping[str, Any]) -> bool:
    has_picture = record.get("image") is not None or record.get("images") is not None
    has_turns = any(record.get(name) is not None for name in ("messages", "conversations", "conversation", "query"))
    has_objects = isinstance(record.get("objects"), list | str)
    return has_picture and has_objects and not has_turns


def _marks(record: Mapping[str, Any]) -> bool:
    return _fits(record) and any(isinstance(item, Mapping) for item in peeked(record, "objects"))


FORM = Form(_READ, _fits, _read, _marks)
