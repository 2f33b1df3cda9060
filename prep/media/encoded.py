"""Picture bytes that stand in a record as text: a data: URI, or base64 alone.

A path is a path, unless no such file exists and the text begins as the base64 of a picture does (`/9j/`, `iVBORw0KGgo`)
and has letters of base64 only. So neither a file name nor a part of a file is ever taken for the other.
"""

import binascii
import re
from typing import Literal, TypeAlias
from urllib.parse import unquote

from lmms.prep.reject import Reject

_SIGNATURE = re.compile(
    r"/9j/|iVBORw0KGgo|R0lGOD[dl]h|UklGR"  # JPEG, PNG, GIF, WebP
    r"|SUkqA|TU0AK|Qk[0-3].{5}AAAA|AAABAA"  # TIFF, BMP, icon
    r"|AAAA.GZ0eX|AAAADGpQIC"  # AVIF and HEIC, JPEG 2000
)
"""How base64 of a picture begins."""
_LEAST = 32
"""Letters that text without a file's ending needs to be taken for base64: no picture has less than 24 bytes."""
_LONGEST_PATH = 4096
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")


def is_picture_text(text: str) -> bool:
    """Whether text looks like base64 of a picture: by its first letters, its length, and the letters of base64."""
    text = text.lstrip()
    if len(text) < _LEAST or not _SIGNATURE.match(text):
        return False
    return len(text) > _LONGEST_PATH or _BASE64.fullmatch(text) is not None


MediaKind: TypeAlias = Literal["image", "video", "audio"]


def data_uri_bytes(uri: str, kind: MediaKind = "image") -> bytes:
    """The bytes of data:image/TYPE;base64,DATA, or of video/TYPE or audio/TYPE. Raises Reject."""
    header, comma, payload = uri[5:].partition(",")
    mime, *parameters = (field.strip().lower() for field in header.split(";"))
    if not comma:
        raise Reject("bad_data_uri", f"{shown(uri)} has no comma; expected data:{kind}/TYPE;base64,DATA")
    if not mime.startswith(f"{kind}/"):
        raise Reject("bad_data_uri", f"the data: URI is of type {shown(mime)}; expected {kind}/TYPE")
    if "base64" not in parameters:
        raise Reject("bad_data_uri", f"{shown(uri)} is not base64; expected data:{kind}/TYPE;base64,DATA")
    return base64_bytes(unquote(payload), uri)


def base64_bytes(text: str, value: str) -> bytes:
    """The bytes of base64, which may be wrapped. value: what the record has, for a message. Raises Reject."""
    letters = "".join(text.split())
    if not letters:
        raise Reject("bad_data_uri", f"{shown(value)} holds no data")
    try:
        return binascii.a2b_base64(letters, strict_mode=True)
    except ValueError as error:
        raise Reject("bad_data_uri", f"{shown(value)} is not base64: {error}") from error


def shown(value: str) -> str:
    """A value as a message quotes it: short, on one line."""
    return repr(value if len(value) <= 100 else f"{value[:97]}...")
