"""What an image may be, and how Pillow says that one is damaged: the same when shards are built and at training."""

import struct
import zlib

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
