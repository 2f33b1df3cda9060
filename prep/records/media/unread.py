"""Media of columns and keys that no part takes: such a record is rejected, since something in it would be lost."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

from lmms.prep.records.media.bare import tags_read
from lmms.prep.records.media.names import Kind, is_media_file, media_kind, names_media
from lmms.prep.reject import Reject

Taken: TypeAlias = Mapping[str, int]
"""How many media of each kind the parts of a record or a message have."""
NONE_TAKEN: Taken = {}


def check_all_read(holder: Mapping[str, Any], read: Collection[str], taken: Taken, place: str = "") -> None:
    """Reject for a column of a record, or a key of a message, that names media which no part takes.

    read: columns or keys that were read. taken: what the holder's parts have; a column of no more media of its kind
    only names them once more. place: of a message; "" for a record.
    """
    for key in holder:
        kind = media_kind(key)
        if kind is None or key in read:
            continue
        entries = names_media(holder[key])
        if kind == "file" and not is_media_file(holder[key]):
            entries = 0
        if entries > _taken_of(kind, taken):
            message = (
                f"`{key}` names media that no part of the record takes; name them in parts, or in `images`, `videos`"
                f" and `audios` for bare parts; {tags_read('image' if kind == 'file' else kind)}"
            )
            raise Reject("unread_media", message, f"{place}.{key}" if place else str(key))


def check_nested(holder: Mapping[str, Any], parsed: Collection[str], taken: Taken, place: str = "") -> None:
    """Reject for media within a column of a record, or a key of a message, that nothing reads: `meta: {"image": ...}`.

    parsed: columns or keys that are read. Here a name is not enough: the value has to be a picture, a video or a sound,
    by the ending of a file's name or as bytes. taken, place: as in check_all_read.
    """
    for key, value in holder.items():
        if key in parsed or not isinstance(value, Mapping | list):
            continue
        for path, kind, entries in _nested(value, str(key)):
            if entries > _taken_of(kind, taken):
                message = f"`{path}` names media that no part of the record takes; name them in parts"
                if kind == "image" and not place:
                    message += f", or map them to `images` for bare image parts: fields: {{images: [$.{path}]}}"
                raise Reject("unread_media", message, f"{place}.{path}" if place else path)


def _taken_of(kind: Kind, taken: Taken) -> int:
    return sum(taken.values()) if kind == "file" else taken.get(kind, 0)


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
            yield f"{path}.{key}", kind, names_media(item)
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
