"""Whether the file of a sound has all the bytes that its container promises, by the sizes in it.

    wav        the chunk with the samples, unless its size says that the writer did not know
    mp3        the bytes that a Xing or Info header in the first frame states
    ogg        the last page
    flac       the number of samples, which a decode is held to
    others     as for videos: mp4, matroska, avi

Sources: RIFF and RF64 (EBU Tech 3306); RFC 3533 (Ogg) and 9639 (FLAC); the header that Xing and LAME write.
"""

import os
from typing import BinaryIO

from lmms.prep.audio.container import FLAC, frame_size, tags_end
from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.whole import check_whole

_UNKNOWN = 0x7FFF0000
"""Writers into a pipe state this size of samples or a larger one."""
_TAIL = 2**17
"""Bytes at the end of an Ogg file that hold its last page: a page has less than 2**16."""


def check_whole_sound(file: BinaryIO, container: Container) -> None:
    """Raises Reject for a file that ends before its parts do; the file is at its start again."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    ends = {"wav": _wav_end, "mp3": _mp3_end, "ogg": _ogg_end}
    if container.name not in ends:
        check_whole(file, container)
        return
    end = ends[container.name](file, size)
    file.seek(0)
    if end > size:
        raise Reject("decode_error", f"the file is cut off: it has {size} bytes, its parts reach to byte {end}")


def promised_samples(file: BinaryIO, container: Container) -> int:
    """Samples of each channel that the header of a FLAC file states; 0: none are stated. The file is at its start."""
    if container != FLAC:
        return 0
    file.seek(tags_end(file) + 8)  # the name of the format, and the head of its first block
    header = file.read(18)
    file.seek(0)
    return int.from_bytes(header[13:]) & (1 << 36) - 1


def _wav_end(file: BinaryIO, size: int) -> int:
    order: str = "big" if file.read(4) == b"RIFX" else "little"
    at, large = 12, 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(24)
        length = int.from_bytes(head[4:8], order)  # type: ignore[arg-type]
        if head[:4] == b"ds64":
            large = int.from_bytes(head[16:24], "little")
        if head[:4] == b"data":
            length = large if length == 0xFFFFFFFF and large else length
            is_unknown = not large and length >= _UNKNOWN
            return size if is_unknown else at + 8 + length
        at += 8 + length + length % 2
    return size


def _mp3_end(file: BinaryIO, size: int) -> int:
    start = tags_end(file)
    file.seek(start)
    head = file.read(4096)
    frame = head.lstrip(b"\0")
    start += len(head) - len(frame)
    frame = frame[: frame_size(frame)]
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 16:
        return size
    flags = int.from_bytes(frame[at + 4 : at + 8])
    if not flags & 2:
        return size
    place = at + (12 if flags & 1 else 8)
    return start + int.from_bytes(frame[place : place + 4])


def _ogg_end(file: BinaryIO, size: int) -> int:
    start = max(0, size - _TAIL)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return size
    page = tail[at:]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return size + 1
    return start + at + 27 + page[26] + sum(page[27 : 27 + page[26]])
