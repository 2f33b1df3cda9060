"""The sounds of a record: their files, and the clips that the record asks for."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from lmms.prep.media.read import MediaRef
from lmms.prep.records.media.bare import Bare, parse_column
from lmms.prep.records.media.pictures import image_ref
from lmms.prep.records.strict_json import kind_of
from lmms.prep.reject import Reject

AUDIO_ASKS = ("audio_start", "audio_end")
"""Keys of an audio part besides the sound itself."""


def parse_audios(raw: Mapping[str, Any]) -> Bare[MediaRef]:
    """What the bare audio parts of a record take: the entries of `audios`, or of `audio` where there is no `audios`.

    Raises Reject.
    """
    return parse_column(raw, "audio", partial(image_ref, kind="audio"))


def spoken_ref(value: Any, place: str) -> MediaRef:
    """The sound of an `input_audio`: {data: base64, format: "wav"}. The bytes tell the format. Raises Reject."""
    if not isinstance(value, Mapping):
        raise Reject("bad_part", f"`input_audio` is {kind_of(value)}, expected an object with `data`", place)
    unknown = [key for key, entry in value.items() if entry is not None and key not in ("data", "format")]
    if unknown:
        raise Reject("bad_part", f"key {unknown[0]!r} in `input_audio`; expected 'data' and 'format'", place)
    if value.get("data") is None:
        raise Reject("part_missing_field", "a part of type 'input_audio' without `data`", place)
    for key in ("data", "format"):
        if not isinstance(value.get(key), str | None):
            raise Reject("bad_part", f"`{key}` in `input_audio` is {kind_of(value[key])}, expected a string", place)
    if not value["data"]:
        raise Reject("bad_data_uri", "`data` in `input_audio` holds nothing", place)
    return MediaRef("base64", value["data"])


def clip_of(part: Mapping[str, Any], place: str) -> tuple[float | None, float | None]:
    """(start, end) in seconds of the clip that a part asks for; None: from the start, to the end. Raises Reject."""
    start, end = (_seconds(key, part.get(key), place) for key in AUDIO_ASKS)
    if start is not None and end is not None and start >= end:
        raise Reject("bad_range", f"audio_start {start:g} is not before audio_end {end:g}", place)
    return start, end


def _seconds(key: str, value: Any, place: str) -> float | None:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < 2**53:
        shown = f"{value:g}" if is_number else kind_of(value)
        raise Reject("bad_part", f"`{key}` is {shown}, expected seconds from 0", place)
    return float(value)
