"""Walks the parts of an image file to the end of its first frame, so that a cut-off file is found without decoding it.

    JPEG   markers, through every scan, to EOI          PNG    chunks and their checksums, to IEND
    GIF    blocks, to the end of the first frame        AVIF   iloc: where the bytes of each item lie
    TIFF   strips or tiles of the first page            WebP, ICO   nothing: Pillow has done it on opening them

What the first frame does not need is not asked for: trailing bytes, a second page, a GIF's trailer. Every other format,
uncompressed or odd TIFF and AVIF sequences are decoded instead, which is stricter; for raw pixels it is only a copy.
Sources: ITU T.81 annex B; PNG (third edition) 5; GIF89a; TIFF 6.0.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Literal
from zlib import crc32

from PIL import Image, TiffImagePlugin

from lmms.prep.media.isobmff import item_ends, uint
from lmms.prep.reject import Reject

# Not a stuffed byte, a restart or a fill byte. What stands between a segment and the next marker is passed over, as
# decoders do: that is the entropy-coded data of a scan.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_EOI, _JPEG_SOS = 0xD9, 0xDA
_JPEG_TEM = 0x01  # has no length
_JPEG_REFUSED = (0xC5, 0xC6, 0xC7, 0xC8, 0xCB, 0xCD, 0xCE, 0xCF, 0xD8)
"""What libjpeg-turbo refuses: hierarchical frames, lossless frames with arithmetic coding, a second start of image."""

_PNG_EMPTY_IDAT = struct.pack(">I4sI", 0, b"IDAT", crc32(b"IDAT"))
_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C
_TIFF_PLACES = ((273, 279), (324, 325))
"""Tags of the offsets and the byte counts, of strips and of tiles."""


def check_structure(name: str, data: bytes, image: Image.Image) -> None:
    """Raises Reject or IndexError if the file is cut off or its parts do not fit.

    `name` is Pillow's name of the format, `image` is what Pillow opened of `data`. Where there is no walk the first
    frame is decoded, with whatever Pillow raises.
    """
    walk = _WALKS.get(name)
    if walk is None:
        image.load()
    else:
        walk(data, image)


def png_without_pixels(data: bytes) -> bytes:
    """A PNG of the same header and metadata. Pillow looks for metadata behind the pixels only after decoding them."""
    parts = [data[:8]]
    seen_pixels = False
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            seen_pixels = True
        elif kind == b"IEND" or (kind == b"fcTL" and seen_pixels):  # Pillow stops there, too: a second frame
            break
        else:
            parts.append(data[start:end])
    return b"".join(parts) + _PNG_EMPTY_IDAT


def _jpeg(data: bytes, image: Image.Image) -> None:
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
        at += 0 if kind == _JPEG_TEM else uint(data, at, 2)
    raise _broken("JPEG", f"is cut off: {len(data)} bytes and no end of image")


def _png(data: bytes, image: Image.Image) -> None:
    view = memoryview(data)
    kinds = []
    for kind, start, end in _png_chunks(data):
        if crc32(view[start + 4 : end - 4]) != uint(data, end - 4, 4):
            raise _broken("PNG", f"has a wrong checksum in the {kind!r} chunk at byte {start}")
        kinds.append(kind)
    pixels = [place for place, kind in enumerate(kinds) if kind == b"IDAT"]
    if not pixels or kinds[-1] != b"IEND":
        raise _broken("PNG", f"is cut off: {len(data)} bytes and no {'IEND' if pixels else 'IDAT'} chunk")
    if pixels[-1] - pixels[0] >= len(pixels):
        raise _broken("PNG", "has other chunks between its IDAT chunks")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk that is there in full, to IEND."""
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + uint(data, at, 4)
        if end > len(data):
            return
        kind = data[at + 4 : at + 8]
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end


def _gif(data: bytes, image: Image.Image) -> None:
    at = 13 + _gif_palette(data[10])
    while data[at] != _GIF_IMAGE:
        at = _gif_blocks(data, at + 2) if data[at] == _GIF_EXTENSION else at + 1
    _gif_blocks(data, at + 10 + _gif_palette(data[at + 9]) + 1)


def _gif_palette(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _gif_blocks(data: bytes, at: int) -> int:
    """The byte behind a chain of sub-blocks."""
    while data[at]:
        at += 1 + data[at]
    return at + 1


def _tiff(data: bytes, image: Image.Image) -> None:
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    places = [(tags.get(offsets, ()), tags.get(counts, ())) for offsets, counts in _TIFF_PLACES]
    ends = [offset + count for offsets, counts in places for offset, count in zip(offsets, counts, strict=False)]
    no_walk = image.info["compression"] == "raw" or any(len(offsets) != len(counts) for offsets, counts in places)
    if no_walk or not ends or len(tags) != _num_tiff_tags(data):
        image.load()
    elif max(ends) > len(data):
        raise _broken("TIFF", f"is cut off: {len(data)} bytes, pixels up to byte {max(ends)}")


def _num_tiff_tags(data: bytes) -> int:
    """As the first directory states it; Pillow leaves out tags that are cut off or damaged."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    is_big_tiff = 43 in data[2:4]
    start = int.from_bytes(data[8:16] if is_big_tiff else data[4:8], order)
    return int.from_bytes(data[start : start + (8 if is_big_tiff else 2)], order)


def _avif(data: bytes, image: Image.Image) -> None:
    if data[8:12] == b"avis":
        image.load()
        return
    end = max(item_ends(data), default=0)
    if end > len(data):
        raise _broken("AVIF", f"is cut off: {len(data)} bytes, an item up to byte {end}")


def _broken(name: str, message: str) -> Reject:
    return Reject("decode_error", f"the {name} {message}")


def _checked_on_opening(data: bytes, image: Image.Image) -> None:
    """WebP: libwebp's demuxer has walked all chunks. ICO: Pillow decodes an icon when it opens it."""


_WALKS: Mapping[str, Callable[[bytes, Image.Image], None]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "AVIF": _avif,
    "TIFF": _tiff,
    "WEBP": _checked_on_opening,
    "ICO": _checked_on_opening,
}
