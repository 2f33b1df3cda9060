"""The content of a file that may be compressed: .gz, .zst, .xz, .bz2, by the ending of the file's name.

A file that is cut off is an error and never a shorter content. zstd may have been written with any window, also by
`zstd --long=31`, which takes 2 GiB of memory here.
"""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from backports import zstd

_WINDOW_LOG = 31
"""The largest window of zstd on a machine of 64 bits."""
BLOCK = 2**20


@contextmanager
def open_content(file: Path) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """Yields the content as a file, and a function that tells how many bytes of `file` were read.

    OSError for a damaged or cut-off file, also in the block.
    """
    try:
        with file.open("rb") as raw, _decompressed(raw, file.suffix.lower()) as content:
            yield content, raw.tell
    except (zlib.error, lzma.LZMAError, zstd.ZstdError, EOFError) as error:
        raise OSError(str(error)) from error


def read_blocks(file: Path) -> Iterator[tuple[bytes, int]]:
    """The content a MiB at a time, and the position in the file after each block. OSError as for open_content."""
    with open_content(file) as (content, position):
        while block := content.read(BLOCK):
            yield block, position()


def _decompressed(raw: BinaryIO, ending: str) -> BinaryIO:
    if ending in (".gz", ".tgz"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if ending == ".zst":
        options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG}
        return cast(BinaryIO, zstd.ZstdFile(raw, options=options))
    if ending == ".xz":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if ending == ".bz2":
        return cast(BinaryIO, bz2.BZ2File(raw))
    return raw
