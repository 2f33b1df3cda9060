"""What an image may be, how Pillow opens it, and how Pillow says that one is damaged: the same in prep and in train.

Pillow is imported where it is used: nothing else that reads the contract needs it.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FORMATS = (
    *("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "ICO", "CUR"),
    *("JPEG2000", "PPM", "PSD", "DDS", "ICNS", "QOI", "PCX", "SGI", "SUN"),
)
"""Formats that are read, by Pillow's names. Left out: formats without a signature (TGA and older), formats that start a
program (EPS), and formats of which Pillow reads the header only (HDF5, MPEG)."""

DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error),
    *(LookupError, TypeError, RuntimeError, ArithmeticError),
)
"""The errors of damaged bytes, in Pillow or in a walk that meets the end of the file."""

PNG_TEXT_BYTES = 64 * 2**20
"""Text and colour profiles of a PNG that are unpacked. Pillow's own limit is 1 MiB; no pixel depends on them."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF_BRANDS = {b"avif", b"avis"}

NEEDS_HEIF = "HEIC pictures need the extra heif: pip install 'lmms[heif]'"
"""What to do where pillow_reads_heic says no."""


def is_heic(data: bytes) -> bool:
    """Whether a file is HEIC, by the brands in its first box: Pillow reads it with the extra `heif` only."""
    if data[4:8] != b"ftyp":
        return False
    brands = {data[at : at + 4] for at in range(8, min(int.from_bytes(data[:4]), 256), 4)}
    return bool(brands & _HEIC_BRANDS) and not brands & _AVIF_BRANDS


def pillow_reads_heic() -> bool:
    """Whether Pillow reads HEIC, as its format HEIF, in this process from now on."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


@contextmanager
def strict_pillow(max_pixels: int | None) -> Iterator[None]:
    """Pillow with this limit of pixels, no tolerance for cut-off files, and silent about metadata.

    The settings are Pillow's own, of the whole process, and are put back: not for threads. Beyond `max_pixels` Pillow
    raises DecompressionBombError or DecompressionBombWarning.
    """
    from PIL import Image, ImageFile, PngImagePlugin

    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    text = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = max_pixels, False
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = PNG_TEXT_BYTES, PNG_TEXT_BYTES
    try:
        with warnings.catch_warnings():
            # Pillow's other warnings are about damaged metadata, on which no pixel depends.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = limits
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = text


def to_rgb(image: "Picture", file_format: str | None) -> "Picture":
    """The picture in mode RGB: on white where transparent, 16-bit grey scaled to 8 bits. file_format: Pillow's name."""
    import numpy as np
    from PIL import Image

    # Pillow reads 16-bit grey as I;16, but from a PGM file as I.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PPM"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
