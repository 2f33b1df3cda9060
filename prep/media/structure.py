"""Walks the parts of an image file to the end of its first frame: this finds a cut-off file without decoding.

    JPEG   markers, through every scan, to EOI          PNG         chunks and their checksums, to IEND
    WebP   nothing: Pillow has walked all chunks        all others  the first frame is decoded, which is stricter

A PNG whose walk finds a fault is decoded: Pillow does without IEND and without checksums behind the header. Nearly all
training pictures are JPEG or PNG; decoding takes 16 and 60 times as long as the walk. Bytes after the end are not
checked. Sources: ITU T.81 annex B; PNG (third edition) 5.
"""

import re
import struct
from collections.abc import Iterator
from zlib import crc32

from PIL import Image

from lmms.prep.reject import Reject

# Not a stuffed byte, a restart or a fill byte. Bytes between a segment and the next marker are skipped, as decoders
# do: they are the entropy-coded data of a scan.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_EOI, _JPEG_SOS = 0xD9, 0xDA
_JPEG_TEM = 0x01  # has no length
_JPEG_REFUSED = (0xC5, 0xC6, 0xC7, 0xC8, 0xCB, 0xCD, 0xCE, 0xCF, 0xD8)
"""What libjpeg-turbo refuses: hierarchical frames, lossless frames with arithmetic coding, a second start of image."""

_CHECKED_BEFORE = ("PNG", "WEBP", "ICO")
"""PNG: by png_is_whole. When Pillow opens a file, libwebp's demuxer walks all chunks, and an icon is decoded."""

_PNG_HEAD, _CHECKSUM = struct.Struct(">I4s"), struct.Struct(">I")
_PNG_EMPTY_IDAT = struct.pack(">I4sI", 0, b"IDAT", crc32(b"IDAT"))


def check_structure(name: str, data: bytes, image: Image.Image) -> None:
    """Raises Reject or IndexError if the file is cut off or its parts do not fit.

    `name` is Pillow's name of the format, `image` is the image that Pillow opened from `data`. Formats without a walk
    have their first frame decoded, with any error that Pillow raises.
    """
    if name == "JPEG":
        _check_jpeg(data)
    elif name not in _CHECKED_BEFORE:
        image.load()


def png_is_whole(data: bytes) -> bool:
    """Whether all chunks are there to IEND, with right checksums, and those of the pixels in a row."""
    view = memoryview(data)
    kinds = []
    for kind, start, end in _png_chunks(data):
        if crc32(view[start + 4 : end - 4]) != _CHECKSUM.unpack_from(data, end - 4)[0]:
            return False
        kinds.append(kind)
    pixels = [place for place, kind in enumerate(kinds) if kind == b"IDAT"]
    return bool(pixels) and kinds[-1] == b"IEND" and pixels[-1] - pixels[0] < len(pixels)


def png_without_pixels(data: bytes) -> bytes:
    """A PNG of the same header and metadata, which Pillow looks for behind the pixels only after decoding them.

    Checksums behind the pixels are made right: there Pillow asks for none.
    """
    parts = [data[:8]]
    seen_pixels = False
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            seen_pixels = True
        elif kind == b"IEND" or (kind == b"fcTL" and seen_pixels):  # Pillow stops there, too: a second frame
            break
        else:
            parts.append(data[start : end - 4])
            parts.append(crc32(parts[-1][4:]).to_bytes(4) if seen_pixels else data[end - 4 : end])
    return b"".join(parts) + _PNG_EMPTY_IDAT


def _check_jpeg(data: bytes) -> None:
    at, seen_scan = 2, False
    while marker := _JPEG_MARKER.search(data, at):
        kind, at = data[marker.end() - 1], marker.end()
        if kind == _JPEG_EOI:
            if not seen_scan:
                raise _broken("JPEG", "ends before its first scan")
            return
        if kind in _JPEG_REFUSED:
            raise _broken("JPEG", f"has a marker ff {kind:02x} at byte {at - 2}, which libjpeg does not decode")
        seen_scan |= kind == _JPEG_SOS
        at += 0 if kind == _JPEG_TEM else _length(data, at)
    raise _broken("JPEG", f"is cut off: {len(data)} bytes and no end of image")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk that is there in full, to IEND."""
    at, whole = 8, len(data)
    while at + 12 <= whole:
        size, kind = _PNG_HEAD.unpack_from(data, at)
        end = at + 12 + size
        if end > whole:
            return
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end


def _length(data: bytes, at: int) -> int:
    """Two bytes, big-endian; raises IndexError behind the end."""
    if at + 2 > len(data):
        raise IndexError(f"{len(data)} bytes, a number at byte {at}")
    return data[at] << 8 | data[at + 1]


def _broken(name: str, message: str) -> Reject:
    return Reject("decode_error", f"the {name} {message}")
