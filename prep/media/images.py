"""Image bytes -> (width, height) as shown, checked as far as asked: the header, the file's structure, or every pixel.

The bytes decide the format, never a name. Pillow reads the header, as Pillow will decode the pixels at training. Only
the first frame or page counts.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Literal

from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from lmms.configs.contract.images import DAMAGE, FORMATS
from lmms.prep.media.structure import check_structure, png_without_pixels
from lmms.prep.reject import Reject

UNREADABLE = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"%PDF-", "PDF"),
    (0, b"%!PS", "PostScript"),
)
"""(offset, bytes, name) of formats that users have and no decoder here reads; HEIC and SVG need more than a prefix."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}
_SIDEWAYS = (5, 6, 7, 8)

Image.init()


def image_size(data: bytes, verify: Literal["header", "structure", "decode"], max_pixels: int) -> tuple[int, int]:
    """(width, height) in pixels after EXIF orientation: the size that PIL.ImageOps.exif_transpose would give.

    header: what Pillow needs to open the file. structure: also the file's parts to the end of the first frame, without
    its pixels in JPEG, PNG and WebP; the first frame of other formats is decoded. decode: also every pixel of the first
    frame. More than `max_pixels` in the header stops all three before any pixel is decoded. Changes Pillow's
    process-wide settings while it runs: not for threads. Raises Reject.
    """
    name = _format(data)
    source = data if name != "PNG" or verify == "decode" else png_without_pixels(data)
    try:
        with _strict_pillow(max_pixels), Image.open(BytesIO(source), formats=[name]) as image:
            if verify == "decode":
                image.load()
            elif verify == "structure":
                check_structure(name, data, image)
            return _shown_size(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = f"the {name} header states more than {max_pixels} pixels; raise max_image_pixels to accept it"
        raise Reject("too_many_pixels", message) from error
    except DAMAGE as error:
        raise Reject("decode_error", f"the {name} of {len(data)} bytes cannot be decoded: {_text(error)}") from error


def _format(data: bytes) -> str:
    """The first of FORMATS whose signature Pillow finds."""
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
    if data[4:8] == b"ftyp":
        brands = {data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4]), 256), 4)}
        return "HEIC" if brands & _HEIC_BRANDS and not brands & _AVIF_BRANDS else ""
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!DOCTYPE svg")) and b"<svg" in text and b"<html" not in text:
        return "SVG"
    return next((name for at, magic, name in UNREADABLE if data.startswith(magic, at)), "")


@contextmanager
def _strict_pillow(max_pixels: int) -> Iterator[None]:
    """Pillow with this limit of pixels, no tolerance for truncated files, and silent about metadata."""
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
    try:
        with warnings.catch_warnings():
            # Pillow's other warnings are about damaged metadata, on which no pixel depends.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


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
    return f"{type(error).__name__}: {error}"
