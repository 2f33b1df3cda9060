"""Image bytes -> (width, height) as shown, checked as far as asked: the header, the file's structure, or every pixel.

The bytes decide the format, never a name. Pillow reads the header, as Pillow will decode the pixels at training. Only
the first frame or page counts.
"""

from io import BytesIO
from typing import Literal

from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from lmms.configs.contract.media.images import (
    DAMAGE,
    FORMATS,
    NEEDS_HEIF,
    PNG_TEXT_BYTES,
    is_heic,
    pillow_reads_heic,
    strict_pillow,
)
from lmms.prep.media.structure import check_structure, png_is_whole, png_without_pixels
from lmms.prep.reject import Reject

UNREADABLE = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
)
"""(offset, bytes, name) of formats that users have and no decoder here reads; SVG and TGA need more than a prefix."""

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SIDEWAYS = (5, 6, 7, 8)

Image.init()


def image_size(data: bytes, verify: Literal["header", "structure", "decode"], max_pixels: int) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation: the size that PIL.ImageOps.exif_transpose would give.

    header: what Pillow needs to open the file. structure: also the file's parts to the end of the first frame, without
    its pixels in JPEG, PNG and WebP; the first frame of other formats is decoded, and of a PNG whose parts do not fit.
    decode: also every pixel of the first frame. More than `max_pixels` in the header stops all three before any pixel
    is decoded. Changes Pillow's process-wide settings while it runs: not for threads. Raises Reject.
    """
    name = _format(data)
    if verify == "decode":
        decode = name != "JPEG" or not _coefficients_are_whole(data, max_pixels)
    else:
        decode = verify == "structure" and name == "PNG" and not png_is_whole(data)
    source = data if name != "PNG" or decode else png_without_pixels(data)
    try:
        with strict_pillow(max_pixels), Image.open(BytesIO(source), formats=[name]) as image:
            stated = image.size
            if decode:
                image.load()
            elif verify == "structure":
                check_structure(name, data, image)
            if name == "HEIF" and image.size != stated:  # training, too, takes what the header states
                raise Reject("decode_error", f"the {name} header states {stated} pixels, the picture has {image.size}")
            return _shown_size(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"the {name} header states more than {max_pixels} pixels; raise max_image_pixels to accept it"
        raise Reject("too_many_pixels", message) from error
    except DAMAGE as error:
        raise Reject("decode_error", f"the {name} of {len(data)} bytes cannot be decoded: {_text(error)}") from error


def _coefficients_are_whole(data: bytes, max_pixels: int) -> bool:
    """Whether Pillow decodes a JPEG to an eighth of its size, in grey: all that can fail is in that, in half the time.

    False also for a file that is sound, but of a kind that cannot be decoded to another size (lossless).
    """
    try:
        with strict_pillow(max_pixels), Image.open(BytesIO(data), formats=["JPEG"]) as image:
            image.draft("L", (1, 1))
            image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *DAMAGE):
        return False
    return True


def _format(data: bytes) -> str:
    """Pillow's name of the format: the first of FORMATS whose signature Pillow finds, or HEIF."""
    if data.startswith(_LFS_POINTER):
        raise Reject("not_an_image", "a Git LFS pointer stands in the picture's place; fetch the files: git lfs pull")
    if is_heic(data):
        if pillow_reads_heic():
            return "HEIF"
        raise Reject("unsupported_format", f"{NEEDS_HEIF}, or convert it to JPEG, PNG or WebP")
    head = data[:16]
    unreadable = _unreadable(data)
    for name in () if unreadable else FORMATS:
        accept = Image.OPEN[name][1]
        accepted = accept is not None and accept(head)
        if isinstance(accepted, str):
            unreadable = name
        elif accepted:
            return name
    if unreadable:
        raise Reject("unsupported_format", f"{unreadable} cannot be decoded here; convert it to JPEG, PNG or WebP")
    raise Reject("not_an_image", f"begins with {head!r}; expected one of {', '.join(FORMATS)}")


def _unreadable(data: bytes) -> str:
    """Name of a known format that no decoder here reads, else ""."""
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text and b"<html" not in text:
        return "SVG"
    if _is_tga(data[:18]):
        return "TGA"
    return next((name for at, magic, name in UNREADABLE if data.startswith(magic, at)), "")


def _is_tga(header: bytes) -> bool:
    """TGA has no signature. A cursor (CUR) begins in the same way, with a count above 0 where TGA has zeros."""
    if len(header) < 18 or not any(header[12:14]) or not any(header[14:16]):
        return False
    has_colours, kind, depth = header[1], header[2], header[16]
    if has_colours == 0:
        return kind in (2, 3, 10, 11) and not any(header[3:8]) and depth in (8, 15, 16, 24, 32)
    return has_colours == 1 and kind in (1, 9) and header[7] in (15, 16, 24, 32) and depth in (8, 16)


def _shown_size(image: Image.Image) -> tuple[int, int]:
    # Not image.getexif(): for PNG that decodes every pixel, in search of an eXIf chunk behind them.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    # Pillow turns the size of a TIFF when it opens the file, by the TIFF's orientation tag.
    turned = isinstance(image, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2
    width, height = image.size
    return (height, width) if orientation in _SIDEWAYS and not turned else (width, height)


def _text(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # the text of this error names a Python object
        return "its header is damaged, or of a kind that Pillow does not read"
    if "MAX_TEXT" in str(error):
        return f"its text or colour profile is larger than {PNG_TEXT_BYTES >> 20} MiB unpacked; write it without"
    return f"{type(error).__name__}: {error}"
