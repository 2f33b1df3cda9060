"""Which container the bytes of a sound are, by their beginning alone, so that a decoder is told and never guesses."""

import re
from typing import BinaryIO

from lmms.prep.reject import Reject
from lmms.prep.video.container import CONTAINERS, Container, head_of, known_container, reject_other_files

WAV = Container("wav", "wav")
FLAC = Container("flac", "flac")
MP3 = Container("mp3", "mp3")
AAC = Container("aac", "aac")
_AIFF = Container("aiff", "aiff")
_SOUNDS = (WAV, FLAC, MP3, AAC, _AIFF)

_BIT_RATES = {
    1: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_LOW_BIT_RATES = {
    1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Layer -> kilobits a second by the number in the header of a frame, from 1; the second for half the sample rates."""
_SAMPLE_RATES = (44100, 48000, 32000)


def sound_container(file: BinaryIO) -> Container:
    """The container of a file that is open at its start; the file is at its start again. Raises Reject."""
    head = head_of(file)
    if not head:
        raise Reject("empty_file", "the sound has 0 bytes")
    container = known_container(head)
    if container:
        return container
    file.seek(tags_end(file))
    container = _known_sound(file.read(len(head)).lstrip(b"\0"))
    file.seek(0)
    if container:
        return container
    reject_other_files(head, "not_a_sound")
    names = ", ".join(container.name for container in (*_SOUNDS, *CONTAINERS))
    raise Reject("not_a_sound", f"begins with {head[:16]!r}; expected one of {names}")


def tags_end(file: BinaryIO) -> int:
    """Bytes of the ID3 tags, with titles and pictures, before the sound of a file; the file is at its start again."""
    end = 0
    while True:
        file.seek(end)
        head = file.read(10)
        if not re.match(rb"ID3.{3}[\x00-\x7f]{4}", head, re.DOTALL):
            file.seek(0)
            return end
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte
        end += 10 + size + (10 if head[5] & 0x10 else 0)


def frame_size(head: bytes) -> int:
    """Bytes of the MPEG audio frame with this beginning, from its header of four bytes; 0: no such frame."""
    bits = int.from_bytes(head[:4])
    version, layer, rate, speed = bits >> 19 & 3, 4 - (bits >> 17 & 3), bits >> 12 & 15, bits >> 10 & 3
    if len(head) < 4 or bits >> 21 != 0x7FF or version == 1 or layer == 4 or rate in (0, 15) or speed == 3:
        return 0
    is_full = version == 3
    kilobits = (_BIT_RATES if is_full else _LOW_BIT_RATES)[layer][rate - 1]
    sample_rate = _SAMPLE_RATES[speed] >> {3: 0, 2: 1, 0: 2}[version]
    padding = bits >> 9 & 1
    if layer == 1:
        return (12000 * kilobits // sample_rate + padding) * 4
    return (144000 if layer == 2 or is_full else 72000) * kilobits // sample_rate + padding


def _known_sound(head: bytes) -> Container | None:
    if re.match(rb"(RIFF|RIFX|RF64|BW64)....WAVE", head, re.DOTALL):
        return WAV
    if head.startswith(b"fLaC"):
        return FLAC
    if re.match(rb"FORM....AIF[FC]", head, re.DOTALL):
        return _AIFF
    # A header of MP3 or AAC is short: a second one where the first frame ends tells that these are no other bytes.
    size = frame_size(head)
    if size and (frame_size(head[size:]) or len(head) <= size):
        return MP3
    size = _aac_size(head)
    if size and (_aac_size(head[size:]) or len(head) <= size):
        return AAC
    return None


def _aac_size(head: bytes) -> int:
    """Bytes of the AAC frame (ADTS) with this beginning; 0: no such frame."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    size = int.from_bytes(head[3:6]) >> 5 & 0x1FFF
    return size if size > 7 else 0
