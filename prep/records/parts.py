"""A part of a message -> Text, Image, Video, Audio or Shape, or a Reject that names the key and the place."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from lmms.configs.contract.media.video import VideoAsk
from lmms.configs.errors import nearest
from lmms.prep.media.edit import Edit
from lmms.prep.media.pins import Fetched
from lmms.prep.media.read import MediaRef
from lmms.prep.media.resize import Ask
from lmms.prep.records.absent import is_null_image
from lmms.prep.records.media.bare import Bare
from lmms.prep.records.media.pictures import image_ref
from lmms.prep.records.media.sounds import AUDIO_ASKS, clip_of, spoken_ref
from lmms.prep.records.media.videos import VIDEO_ASKS, VideoFiles, video_ask, video_files
from lmms.prep.records.shapes import Shape, Size
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

_ASK_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
IMAGE_KEYS = ("image", "image_url", "url", "path", "base64")
_PART_KEYS = {
    "text": ("text",),
    "image": (*IMAGE_KEYS, *_ASK_KEYS),
    "image_url": ("image_url", *_ASK_KEYS),
    "video": ("video", *VIDEO_ASKS),
    "video_url": ("video_url", *VIDEO_ASKS),
    "audio": ("audio", *AUDIO_ASKS),
    "audio_url": ("audio_url", *AUDIO_ASKS),
    "input_audio": ("input_audio", *AUDIO_ASKS),
}


NO_ASK = VideoAsk()


@dataclass(frozen=True, slots=True)
class Text:
    """A text part."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image part: where its bytes come from."""

    ref: MediaRef
    place: str
    ask: Ask | None = None
    """The size that the part asks for, if any."""
    size: Size | None = None
    """Width and height in pixels before the edits, once `ref` holds the picture's bytes; None: not read yet."""
    edits: tuple[Edit, ...] = ()
    """Changes of the picture that transforms ask for, in order."""
    fetched: Fetched | None = None
    """The URL and the hash of the bytes, if they came over the network."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video part: its files, and which of its frames are wanted."""

    files: VideoFiles
    place: str
    ask: VideoAsk = NO_ASK
    sample_fps: float | None = None
    """Frames a second of a list of frames; None: not stated."""


@dataclass(frozen=True, slots=True)
class Audio:
    """An audio part: where its bytes come from, and which clip of the sound is wanted."""

    ref: MediaRef
    place: str
    start: float | None = None
    """Seconds; None: from the start of the sound."""
    end: float | None = None
    """Seconds; None: to the end."""


Medium: TypeAlias = Image | Video | Audio
MEDIA_PARTS = (Image, Video, Audio)
"""Not `Image | Video | Audio`: to make such a type takes longer than the question whether a part is of the type."""
Part: TypeAlias = Text | Medium | Shape


@dataclass(frozen=True, slots=True)
class Columns:
    """What the bare parts of a record take."""

    images: Bare[MediaRef]
    videos: Bare[VideoFiles]
    audios: Bare[MediaRef]


def parse_part(part: Any, place: str, columns: Columns) -> Part:
    """The typed part; a bare part takes the next entry of its column."""
    if not isinstance(part, Mapping):
        if isinstance(part, Shape):  # made by a form: a raw record holds none
            return part
        raise Reject("part_not_object", f"a part is {kind_of(part)}, expected an object", place)
    kind = part.get("type")
    if not isinstance(kind, str | None):
        raise Reject("unknown_part_type", f"`type` is {kind_of(kind)}, expected a string", place)
    if kind not in _PART_KEYS:
        given = f"type {kind!r}" if kind is not None else f"no `type`; found the keys {', '.join(map(str, part))}"
        raise Reject("unknown_part_type", f"{given}{nearest(str(kind), _PART_KEYS)}", place)
    # A row of a table has every key of its struct, null where another part uses it.
    known = ("type", *_PART_KEYS[kind])
    unknown = [key for key, value in part.items() if value is not None and key not in known]
    if unknown:
        expected = ", ".join(map(repr, _PART_KEYS[kind]))
        raise Reject("bad_part", f"key {unknown[0]!r} in a part of type {kind!r}; expected {expected}", place)
    if kind == "text":
        return Text(_text(part.get("text"), place))
    if kind in ("video", "video_url"):
        files = _video(part, kind, place, columns.videos)
        return Video(files, place, *video_ask(part, files, place))
    if kind in ("audio", "audio_url", "input_audio"):
        return Audio(_sound(part, kind, place, columns.audios), place, *clip_of(part, place))
    return Image(_picture(part, kind, place, columns.images), place, _ask(part, place))


def _video(part: Mapping[str, Any], kind: str, place: str, videos: Bare[VideoFiles]) -> VideoFiles:
    value = part.get(kind)
    if kind == "video" and is_null_image(value):
        return videos.take(place)
    if kind == "video_url":
        value = _address(value, place, kind)
        if not isinstance(value, str):
            raise Reject("bad_part", f"`{kind}` is {kind_of(value)}, expected a string", place)
        return VideoFiles((MediaRef("url", value),), is_frames=False)
    return video_files(value, place)


def _sound(part: Mapping[str, Any], kind: str, place: str, audios: Bare[MediaRef]) -> MediaRef:
    value = part.get(kind)
    if kind == "input_audio":
        return spoken_ref(value, place)
    if kind == "audio":
        return audios.take(place) if is_null_image(value) else image_ref(value, place, "audio")
    value = _address(value, place, kind)
    if not isinstance(value, str):
        raise Reject("bad_part", f"`{kind}` is {kind_of(value)}, expected a string", place)
    return MediaRef("url", value)


def _picture(part: Mapping[str, Any], kind: str, place: str, images: Bare[MediaRef]) -> MediaRef:
    given = [key for key in IMAGE_KEYS if key in _PART_KEYS[kind] and not is_null_image(part.get(key))]
    if len(given) > 1:
        raise Reject("bad_part", f"an image part with both {given[0]!r} and {given[1]!r}; expected one", place)
    if not given and kind == "image":
        return images.take(place)
    key = given[0] if given else "image_url"
    value = part.get(key)
    if key == "image":
        return image_ref(value, place)
    value = _address(value, place, key) if key == "image_url" else value
    if not isinstance(value, str):
        raise Reject("bad_part", f"`{key}` is {kind_of(value)}, expected a string", place)
    return MediaRef({"path": "path", "base64": "base64"}.get(key, "url"), value)  # type: ignore[arg-type]


def _ask(part: Mapping[str, Any], place: str) -> Ask | None:
    """The size that a part asks for. Tables write whole numbers as floats where other rows have none."""
    numbers = {key: value for key in _ASK_KEYS if (value := part.get(key)) is not None}
    for key, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 1 <= value < 2**53 or value != int(value):
            raise Reject("bad_part", f"`{key}` is {str(value)[:40]!r}, expected a whole number above 0", place)
    sides = [int(numbers[key]) for key in ("resized_height", "resized_width") if key in numbers]
    if len(sides) == 1:
        raise Reject("bad_part", "resized_height and resized_width: only one is there, expected both", place)
    least, most = (int(numbers[key]) if key in numbers else None for key in ("min_pixels", "max_pixels"))
    if least and most and least > most:
        raise Reject("bad_part", f"min_pixels {least} is above max_pixels {most}", place)
    return Ask(least, most, (sides[0], sides[1]) if sides else None) if numbers else None


def _text(value: Any, place: str) -> str:
    if value is None:
        raise Reject("part_missing_field", "a text part without `text`", place)
    if not isinstance(value, str):
        raise Reject("bad_part", f"`text` is {kind_of(value)}, expected a string", place)
    return value


def _address(value: Any, place: str, key: str) -> Any:
    """The address in an `image_url`, `video_url` or `audio_url`, an object or the address itself."""
    if isinstance(value, Mapping):
        unknown = [name for name, v in value.items() if v is not None and name not in ("url", "detail")]
        if unknown:
            raise Reject("bad_part", f"key {unknown[0]!r} in `{key}`; expected 'url'", place)
        value = value.get("url")
    if value is None:
        raise Reject("part_missing_field", f"a part of type {key!r} without `url`", place)
    return value
