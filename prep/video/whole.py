"""Whether a file has all the bytes that its container promises, by the sizes in it, without reading what is between.

    mp4        the boxes at the top, to the end of the file; a cut between two fragments is the end of a shorter video
    matroska   the segment, unless its size is not stated (a live stream)
    avi        the RIFF list
    others     nothing: they state no sizes

Bytes behind the end are not checked. Sources: ISO/IEC 14496-12 4.2; RFC 8794 and 9559; Microsoft's AVI RIFF reference.
"""

import os
from typing import BinaryIO

from lmms.prep.reject import Reject
from lmms.prep.video.container import Container

_BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"free", b"skip", b"wide", b"uuid", b"meta", b"styp")
"""What stands at the top of an mp4 file. Where another name stands, the boxes are over."""
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067


def check_whole(file: BinaryIO, container: Container) -> None:
    """Raises Reject for a file that ends before its parts do; the file is at its start again."""
    size = file.seek(0, os.SEEK_END)
    ends = {"mp4": _mp4_end, "matroska": _matroska_end, "avi": _avi_end}
    end = ends[container.name](file, size) if container.name in ends else size
    file.seek(0)
    if end > size:
        message = f"the file is cut off: it has {size} bytes, its parts reach to byte {end}"
        raise Reject("decode_error", message)


def _mp4_end(file: BinaryIO, size: int) -> int:
    at, name = 0, b""
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:])
        name = head[4:8]
        if name not in _BOXES or length < 8:  # 0: to the end of the file
            return size
        at += length
    return at + 8 if name == b"moof" else at  # it tells of samples in the box behind it


def _matroska_end(file: BinaryIO, size: int) -> int:
    file.seek(0)
    at = 0
    for name in (_EBML, _SEGMENT):
        file.seek(at)
        head = file.read(12)
        if len(head) < 12 or int.from_bytes(head[:4]) != name:
            return size
        width = 9 - head[4].bit_length()
        if width > 8:
            return size
        length = int.from_bytes(head[4 : 4 + width]) & (1 << 7 * width) - 1
        if length == (1 << 7 * width) - 1:
            return size
        at += 4 + width + length
    return at


def _avi_end(file: BinaryIO, size: int) -> int:
    file.seek(4)
    return 8 + int.from_bytes(file.read(4), "little")
