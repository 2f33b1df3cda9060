"""Names of columns and keys that hold pictures, videos or sounds in the data sets of other systems.

A name is a word such as `image`, and an ending such as `_path`; or the ending of a file, such as `jpg`. Capitals count
for nothing. Of a path such as `data.images[0]` the last name counts.
"""

from functools import lru_cache
from typing import Any, Literal, TypeAlias

from lmms.prep.records.absent import is_absent

Kind: TypeAlias = Literal["image", "video", "audio", "file"]
"""What a name tells of; `file` is the name of a file that may be any of them."""

_WORDS: dict[str, Kind] = {
    **dict.fromkeys(("image", "img", "picture", "photo", "screenshot", "pixel_values", "media"), "image"),
    "video": "video",
    **dict.fromkeys(("audio", "sound"), "audio"),
}
_ENDINGS = ("path", "file", "url", "uri", "name", "base64", "bytes", "list")
_STILL_FILES = ("jpg", "jpeg", "png", "gif", "webp", "bmp", "tif", "tiff", "avif", "heic", "heif")
_VIDEO_FILES = ("mp4", "webm", "mkv", "avi", "mov")
_SOUND_FILES = ("mp3", "wav", "flac", "ogg", "m4a")
_MORE_SOUND_FILES = ("opus", "aac", "aif", "aiff")
"""Endings of sounds whose words stand for other things, too, as the name of a column."""
_FILE_ENDINGS = frozenset((*_STILL_FILES, *_VIDEO_FILES, *_SOUND_FILES, *_MORE_SOUND_FILES))
_FILE_NAMES = ("file_name", "file_names", "filename", "filenames")


def _names() -> dict[str, Kind]:
    names: dict[str, Kind] = {}
    for word, kind in _WORDS.items():
        for noun in (word, f"{word}s"):
            endings = [f"{joint}{ending}{plural}" for joint in "_ " for ending in _ENDINGS for plural in ("", "s")]
            names |= dict.fromkeys([noun, *(noun + ending.strip() for ending in endings)], kind)
    files: dict[str, Kind] = dict.fromkeys(_FILE_NAMES, "file")
    files |= {**dict.fromkeys(_VIDEO_FILES, "video"), **dict.fromkeys(_SOUND_FILES, "audio")}
    return {**names, **dict.fromkeys(_STILL_FILES, "image"), **files}


_KINDS = _names()
NAMES_OF_MEDIA = frozenset(_KINDS)
"""Names in small letters. A column of a table with such a name, in any letters, is read."""


@lru_cache(maxsize=4096)
def media_kind(name: Any) -> Kind | None:
    """What a column or key of this name holds; None for a name that does not tell of media."""
    return _KINDS.get(str(name).rpartition(".")[2].partition("[")[0].lower())


def is_media_file(value: Any) -> bool:
    """Whether a value is the name of a picture, a video or a sound by its ending, or a list with such a name."""
    if isinstance(value, list):
        return any(map(is_media_file, value))
    return isinstance(value, str) and value.rpartition(".")[2].lower() in _FILE_ENDINGS


def names_media(value: Any) -> int:
    """How many pictures, videos or sounds a value names; a number or a boolean says something else."""
    if is_absent(value) or isinstance(value, bool | int | float):
        return 0
    return sum(names_media(entry) for entry in value) if isinstance(value, list) else 1
