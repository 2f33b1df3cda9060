"""The packets of a video: how many frames there are, when each is shown, and where decoding may start."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import BinaryIO

from lmms.prep.reject import Reject
from lmms.prep.video.container import Container
from lmms.prep.video.facts import VideoLimits
from lmms.prep.video.opened import codec_of, opened

_STAMPED = ("mp4", "matroska", "flv", "mpegts")
"""Containers with a time stamp for each packet; files of others are decoded to count their frames."""
_FRAME_A_PACKET = ("h264", "hevc", "vp9", "av1", "mjpeg", "ffv1", "prores", "png")
"""Codecs of one shown frame for each packet; others are decoded to count."""
_LOOK = 4
"""Frames that are decoded to see that they are those of the first packets."""


@dataclass(frozen=True, slots=True)
class Walk:
    """The packets of the video stream."""

    stamps: "array[int]"
    """Presentation times in the time base of the stream, sorted. Empty: not all packets have one."""
    keys: "array[int]"
    """Presentation times of the packets at which decoding may start, sorted."""
    places: "array[int]"
    """The time by which the container finds the packet of each key."""
    is_sure: bool
    """Whether frame number i is the one of stamps[i], in a stream without damage."""
    seconds: float
    """From the first time stamp to the end of the last packet; 0: not known."""


def walked(file: BinaryIO, container: Container, limits: VideoLimits) -> Walk:
    """The packets, to the end of the file; and whether the first frames are those of the first packets."""
    stamps, keys, end = array("q"), list[tuple[int, int]](), 0
    has_all = container.name in _STAMPED
    with opened(file, container, limits) as (video, stream):
        has_all &= codec_of(stream) in _FRAME_A_PACKET
        for packet in video.demux(stream):
            if packet.size == 0:  # the last, which asks a decoder for what it has left
                continue
            if packet.is_corrupt:
                raise Reject("decode_error", f"the file is cut off or damaged at packet {len(stamps)} of its video")
            if packet.pts is None:
                has_all = False
                continue
            has_all &= not packet.is_discard and (packet.is_keyframe or bool(keys))
            stamps.append(packet.pts)
            end = max(end, packet.pts + (packet.duration or 0))
            if packet.is_keyframe:
                # Matroska finds packets by the time at which they are shown, others by that at which they are decoded.
                decoded = packet.pts if container.name == "matroska" or packet.dts is None else packet.dts
                keys.append((packet.pts, min(packet.pts, decoded)))
        seconds = float((end - min(stamps)) * (stream.time_base or 0)) if stamps else 0.0
    stamps = array("q", sorted(stamps))
    keys.sort()
    has_all &= bool(stamps) and all(earlier < later for earlier, later in pairwise(stamps))
    is_sure = has_all and shows_first(file, container, limits, stamps)
    return Walk(stamps, array("q", (key for key, _ in keys)), array("q", (at for _, at in keys)), is_sure, seconds)


def shows_first(file: BinaryIO, container: Container, limits: VideoLimits, stamps: Sequence[int]) -> bool:
    """Whether the first frames have the first time stamps: fields of a frame, and frames to skip, may not."""
    with opened(file, container, limits) as (video, stream):
        return [frame.pts for frame in islice(video.decode(stream), _LOOK)] == list(stamps[:_LOOK])
