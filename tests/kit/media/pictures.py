"""Small pictures in every format that is read, and what Pillow makes of them."""

import io
import random
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any, Literal

from PIL import ExifTags, Image, ImageOps
from pillow_heif import register_heif_opener

from lmms.prep.media.images import image_size
from lmms.prep.reject import Reject

register_heif_opener()

Level = Literal["header", "structure", "decode"]
LEVELS: tuple[Level, ...] = ("header", "structure", "decode")
MAX_PIXELS = 178_956_970
WIDTH, HEIGHT = 37, 23
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    struct.error,
)


def picture(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), seed: int = 0) -> Image.Image:
    """Noise: what compresses badly leaves much to cut off."""
    noise = Image.frombytes("RGB", size, random.Random(seed).randbytes(3 * size[0] * size[1]))
    return noise.convert(mode)


def encoded(name: str, mode: str = "RGB", **settings: Any) -> bytes:
    out = io.BytesIO()
    picture(mode).save(out, name, **settings)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def decoded_size(data: bytes) -> tuple[int, int] | None:
    """What training will see; None where Pillow cannot decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return ImageOps.exif_transpose(image).size
        except (*DAMAGE, Image.DecompressionBombError):
            return None


def outcome(data: bytes, level: Level, max_pixels: int = MAX_PIXELS) -> tuple[int, int] | str:
    """The size, or the reason of the rejection."""
    try:
        return image_size(data, level, max_pixels)
    except Reject as reject:
        return reject.reason


def encoded_twice(name: str, **settings: Any) -> bytes:
    """With a second frame or page."""
    return encoded(name, save_all=True, append_images=[picture(seed=1)], **settings)


def png_with(before: bytes = b"", behind: bytes = b"") -> bytes:
    data = encoded("PNG")
    end = data.index(b"IEND") - 4
    return data[:33] + before + data[33:end] + behind + data[end:]


FILES: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded("JPEG"),
    "jpeg progressive": lambda: encoded("JPEG", progressive=True),
    "jpeg restarts": lambda: encoded("JPEG", restart_marker_blocks=1),
    "jpeg grey": lambda: encoded("JPEG", "L"),
    "jpeg cmyk": lambda: encoded("JPEG", "CMYK"),
    "jpeg of two pictures": lambda: encoded_twice("MPO"),
    "png": lambda: encoded("PNG"),
    "png palette": lambda: encoded("PNG", "P"),
    "png animated": lambda: encoded_twice("PNG"),
    "gif": lambda: encoded("GIF", "P"),
    "gif animated": lambda: encoded_twice("GIF"),
    "webp": lambda: encoded("WEBP"),
    "webp lossless": lambda: encoded("WEBP", "RGBA", lossless=True),
    "webp animated": lambda: encoded_twice("WEBP"),
    "avif": lambda: encoded("AVIF"),
    "avif alpha": lambda: encoded("AVIF", "RGBA"),
    "avif sequence": lambda: encoded_twice("AVIF"),
    "heic": lambda: encoded("HEIF"),
    "heic of two pictures": lambda: encoded_twice("HEIF"),
    "bmp": lambda: encoded("BMP"),
    "bmp 1 bit": lambda: encoded("BMP", "1"),
    "tiff raw": lambda: encoded("TIFF"),
    "tiff lzw": lambda: encoded("TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: encoded("TIFF", compression="jpeg"),
    "tiff fax": lambda: encoded("TIFF", "1", compression="group4"),
    "tiff two pages": lambda: encoded_twice("TIFF", compression="tiff_deflate"),
    "tiff big": lambda: encoded("TIFF", compression="tiff_deflate", big_tiff=True),
    "ico": lambda: encoded("ICO", sizes=[(16, 16)]),
    "ico of bitmaps": lambda: encoded("ICO", sizes=[(16, 16)], bitmap_format="bmp"),
    "jpeg2000": lambda: encoded("JPEG2000"),
    "ppm": lambda: encoded("PPM"),
    "qoi": lambda: encoded("QOI"),
    "dds": lambda: encoded("DDS"),
    "pcx": lambda: encoded("PCX"),
    "sgi": lambda: encoded("SGI"),
}
