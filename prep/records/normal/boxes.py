"""ms-swift's `objects`: {ref: ["cat"], bbox: [[x1, y1, x2, y2]], bbox_type, image_id} for the tags of a text.

Each tag <bbox> takes the next box or point of `bbox`, each <ref-object> the next name of `ref`. `bbox_type` is `real`,
pixels of the picture, or `norm1`, shares of its sides; `image_id` has the picture's number of each box, by default 0.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from lmms.prep.records.absent import is_absent
from lmms.prep.records.shapes import Kind, Shape, Unit, parse_shape
from lmms.prep.records.strict_json import kind_of, parse_json
from lmms.prep.reject import Reject

_TAG = re.compile("(<bbox>|<ref-object>)")
_KEYS = ("ref", "bbox", "bbox_type", "image_id")


def place_objects(messages: list[dict[str, Any]], objects: Any, pictures: int) -> None:
    """Put the boxes and names of `objects` into the texts of the messages. pictures: of the record. Raises Reject."""
    if isinstance(objects, str) and objects:
        objects = parse_json(objects, "objects")
    if is_absent(objects) or (isinstance(objects, Mapping) and not any(objects.values())):
        return
    if not isinstance(objects, Mapping):
        raise Reject("bad_box", f"`objects` is {kind_of(objects)}, expected an object with `ref` and `bbox`", "objects")
    unknown = [key for key, value in objects.items() if value and key not in _KEYS]
    if unknown:
        raise Reject("bad_box", f"key {unknown[0]!r} in `objects`; expected {', '.join(_KEYS)}", "objects")
    left: dict[str, deque[Any]] = {"<bbox>": deque(_shapes(objects, pictures)), "<ref-object>": deque(_names(objects))}
    for message in messages:
        message["content"] = _content(message["content"], left)
    for tag, entries in left.items():
        if entries:
            raise Reject("count_mismatch", f"`objects` has {len(entries)} more entries than there are {tag}", "objects")


def _content(content: Any, left: Mapping[str, deque[Any]]) -> Any:
    if isinstance(content, list):
        return [new for part in content for new in _parts(part, left)]
    if not isinstance(content, str):
        return content
    parts = list(_parts({"type": "text", "text": content}, left))
    is_text = all(isinstance(part, dict) for part in parts)
    return "".join(part["text"] for part in parts) if is_text else parts


def _parts(part: Any, left: Mapping[str, deque[Any]]) -> Iterator[Any]:
    if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
        yield part
        return
    for i, piece in enumerate(_TAG.split(part["text"])):
        if i % 2 and not left[piece]:
            raise Reject("count_mismatch", f"a tag {piece} without an entry left in `objects`", "objects")
        entry = left[piece].popleft() if i % 2 else piece
        if isinstance(entry, Shape):
            yield entry
        elif entry:
            yield {"type": "text", "text": entry}


def _shapes(objects: Mapping[str, Any], pictures: int) -> Iterator[Shape]:
    boxes, numbers = objects.get("bbox") or [], objects.get("image_id") or []
    bbox_type = objects.get("bbox_type") or "real"
    if bbox_type not in ("real", "norm1"):
        raise Reject("bad_box", f"bbox_type {bbox_type!r}; expected real or norm1", "objects.bbox_type")
    unit: Unit = "share" if bbox_type == "norm1" else "pixel"
    if not isinstance(boxes, list) or not isinstance(numbers, list):
        raise Reject("bad_box", "`bbox` and `image_id` of `objects` have to be lists", "objects")
    for i, box in enumerate(boxes):
        place = f"objects.bbox[{i}]"
        number = numbers[i] if i < len(numbers) else 0
        if not isinstance(number, int) or not 0 <= number < pictures:
            raise Reject("bad_box", f"a box of picture {number!r}; the record has {pictures} pictures", place)
        kind: Kind = "points" if isinstance(box, list) and len(box) == 2 else "box"
        yield parse_shape(kind, box, number, place, unit)


def _names(objects: Mapping[str, Any]) -> list[str]:
    names = objects.get("ref") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Reject("bad_box", "`ref` of `objects` has to be a list of texts", "objects.ref")
    return names
