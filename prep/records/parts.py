"""A part of a message -> Text, Image, Video, Audio or Shape, or a Reject that names the key and the place."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

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

T = TypeVar("T")

_ASK_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


def sources(medium: str) -> tuple[str, ...]:
    """The keys under which a part names its file, of kind image, video or audio."""
    others = ("url", "path", "base64") if medium == "image" else ()  # as transformers writes pictures
    return (medium, f"{medium}_url", *others)


_PART_KEYS = {
    "text": ("text",),
    "image": (*sources("image"), *_ASK_KEYS),
    "image_url": ("image_url", *_ASK_KEYS),
    "video": (*sources("video"), *VIDEO_ASKS),
    "video_url": ("video_url", *VIDEO_ASKS),
    "audio": (*sources("audio"), *AUDIO_ASKS),
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
    if kind == "input_audio":
        return Audio(spoken_ref(part.get(kind), place), place, *clip_of(part, place))
    if kind in ("audio", "audio_url"):
        sound = _file(part, kind, place, columns.audios, _sound, _alone)
        return Audio(sound, place, *clip_of(part, place))
    if kind in ("video", "video_url"):
        files = _file(part, kind, place, columns.videos, video_files, _one_file)
        return Video(files, place, *video_ask(part, files, place))
    return Image(_file(part, kind, place, columns.images, image_ref, _alone), place, _ask(part, place))


_sound = partial(image_ref, kind="audio")


def _alone(ref: MediaRef) -> MediaRef:
    return ref


def _one_file(ref: MediaRef) -> VideoFiles:
    return VideoFiles((ref,), is_frames=False)


def _file(
    part: Mapping[str, Any],
    kind: str,
    place: str,
    bare: Bare[T],
    parse: Callable[[Any, str], T],
    made_of: Callable[[MediaRef], T],
) -> T:
    """What a part names, or takes of the column for bare parts. parse: of the value under the name of the medium."""
    medium = kind.removesuffix("_url")
    given = [key for key in sources(medium) if key in _PART_KEYS[kind] and not is_null_image(part.get(key))]
    if len(given) > 1:
        raise Reject("bad_part", f"a part with both {given[0]!r} and {given[1]!r}; expected one of them", place)
    if not given and kind == medium:
        return bare.take(place)
    key = given[0] if given else kind
    value = part.get(key)
    if key == medium:
        return parse(value, place)
    value = _address(value, place, key) if key.endswith("_url") else value
    if not isinstance(value, str):
        raise Reject("bad_part", f"`{key}` is {kind_of(value)}, expected a string", place)
    return made_of(MediaRef({"path": "path", "base64": "base64"}.get(key, "url"), value))  # type: ignore[arg-type]


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
