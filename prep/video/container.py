"""Which container the bytes are, by their beginning alone, so that a decoder is told and never guesses.

A decoder that guesses takes a text for a playlist, a list of files or subtitles, and opens what the text names.
"""

import re
from dataclasses import dataclass
from typing import BinaryIO

from lmms.prep.reject import Reject

_HEAD = 4096
"""Bytes that tell. The type of a Matroska file stands in its first element, which is short."""


@dataclass(frozen=True, slots=True)
class Container:
    """A container that is read."""

    name: str
    demuxer: str
    """libavformat's name of the reader that is forced."""


MP4 = Container("mp4", "mov")
MATROSKA = Container("matroska", "matroska")
AVI = Container("avi", "avi")
_OTHERS = (
    (re.compile(rb"FLV\x01"), Container("flv", "flv")),
    (re.compile(rb"OggS\x00"), Container("ogg", "ogg")),
    (re.compile(rb"GIF8[79]a"), Container("gif", "gif")),
    (re.compile(rb"\x00\x00\x01\xba"), Container("mpeg", "mpeg")),
    # Packets of 188 bytes; 4 bytes of time before each (Blu-ray), or 16 bytes behind each.
    (re.compile(rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G|G.{203}G.{203}G", re.DOTALL), Container("mpegts", "mpegts")),
)
CONTAINERS = (MP4, MATROSKA, AVI, *(container for _, container in _OTHERS))

_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof", b"sidx")
"""Boxes that a file of the mp4 family begins with; QuickTime files of old have no ftyp."""
_PICTURE_BRANDS = (b"mif1", b"msf1", b"heic", b"heix", b"avif", b"jp2 ", b"jpx ")
_NOT_READ = (
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (WMV, WMA, ASF)"),
    (rb"\.RMF", "RealMedia"),
    (rb"\x00\x00\x01[\xb3\x67\x27\x09\x40]|\x00\x00\x00\x01[\x67\x27\x09\x40]", "a stream without a container"),
    (rb"DKIF|YUV4MPEG2", "a stream without a container"),
)
_NO_MEDIA = (
    (rb"\s*#EXTM3U|\s*\[playlist\]", "a playlist, which names other files"),
    (rb"\s*ffconcat", "a list of files to join"),
    (rb"\s*<", "a text with tags, perhaps a page or a DASH playlist"),
    (rb"version https://git-lfs", "a Git LFS pointer; fetch the files: git lfs pull"),
    (rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP", "a picture, which is a part of type image"),
)
_SOUND = re.compile(rb"RIFF....WAVE|fLaC|ID3", re.DOTALL)


def container_of(file: BinaryIO) -> Container:
    """The container of a file that is open at its start; the file is at its start again. Raises Reject."""
    head = head_of(file)
    if not head:
        raise Reject("empty_file", "the video has 0 bytes")
    container = known_container(head)
    if container:
        return container
    reject_other_files(head, "not_a_video")
    if _SOUND.match(head):
        raise Reject("not_a_video", "the file is a sound, which is a part of type audio")
    names = ", ".join(container.name for container in CONTAINERS)
    raise Reject("not_a_video", f"begins with {head[:16]!r}; expected one of {names}")


def head_of(file: BinaryIO) -> bytes:
    """The first bytes of a file that is open at its start; the file is at its start again."""
    head = file.read(_HEAD)
    file.seek(0)
    return head


def known_container(head: bytes) -> Container | None:
    """The container of a file with this beginning, if a video may be in one."""
    if head[4:8] in _BOXES and not (head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS):
        return MP4
    if head.startswith(b"\x1a\x45\xdf\xa3") and re.search(rb"\x42\x82.{1,8}?(matroska|webm)", head[:256], re.DOTALL):
        return MATROSKA
    if re.match(rb"RIFF....AVI", head, re.DOTALL):
        return AVI
    return next((container for pattern, container in _OTHERS if pattern.match(head)), None)


def reject_other_files(head: bytes, reason: str) -> None:
    """Raises Reject for the beginning of a file that has a name of its own: of that reason, or unsupported_format."""
    for magic, name in _NOT_READ:
        if re.match(magic, head):
            advice = "convert it to MP4, for example with ffmpeg"
            raise Reject("unsupported_format", f"{name} is not read here; {advice}")
    for magic, name in _NO_MEDIA:
        if re.match(magic, head, re.DOTALL):
            raise Reject(reason, f"the file is {name}")
