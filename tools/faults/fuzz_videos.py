"""Random changes to what is read of videos: files, and the entries of their rows in a pack.

containers   bytes of files: a container whose parts are whole, or a reject with its reason; read in this process
decoders     the same files to the process that decodes: facts, or a reject
rows         the `media` column of a pack: patches of each row, or ValueError, a broken contract, BadMediaError
"""

import json
import random
from collections.abc import Callable
from functools import partial
from io import BytesIO

import av
import numpy as np
from PIL import Image

from lmms.configs.contract.check import check_pack, pack_limits
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.pack import Media, Pack, Row
from lmms.configs.contract.sidecar import pack_row
from lmms.prep.reject import REASONS, Reject
from lmms.prep.video.container import container_of
from lmms.prep.video.decode import probe
from lmms.prep.video.facts import VideoLimits
from lmms.prep.video.whole import check_whole
from lmms.train.batch.frames import row_patches
from lmms.train.batch.images import BadMediaError
from tools.faults.mutations import mutated
from tools.faults.sound_files import damaged

_FORMS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
    ("mov", "mjpeg", {}),
    ("matroska", "libx264", {}),
    ("avi", "mpeg4", {}),
    ("mpegts", "libx264", {}),
    ("mpeg", "mpeg1video", {}),
    ("flv", "libx264", {}),
    ("gif", "gif", {}),
)
_PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8"}
_VISION = Vision(
    patch_size=8,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=256,
    max_pixels=65536,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
_PAD = 7
_PYTHON_ENDED = "ended with status 1"
"""How a process ends by an exception that nobody expected; a library that crashes ends it by a signal."""


def _video(form: str, codec: str, options: dict[str, str]) -> bytes:
    target = BytesIO()
    with av.open(target, "w", format=form, options=options) as output:
        stream = output.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = _PIXELS.get(codec, "yuv420p")
        for number in range(8):
            pixels = np.full((48, 64, 3), 30 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return target.getvalue()


def _outcome(read: Callable[[bytes], object], hit: bytes) -> tuple[str, str]:
    try:
        read(hit)
    except Reject as reject:
        if reject.reason not in REASONS or _PYTHON_ENDED in reject.message:
            return "wrong", f"{reject}: {hit!r}"
        return reject.reason, ""
    except Exception as error:  # noqa: BLE001  (the campaign looks for exceptions of any kind)
        return "wrong", f"{type(error).__name__}: {error}: {hit!r}"
    return "read", ""


def container_target() -> Callable[[random.Random], tuple[str, str]]:
    """Files, damaged, to the readers that no decoder stands behind."""
    videos = [_video(*form) for form in _FORMS]

    def read(hit: bytes) -> None:
        file = BytesIO(hit)
        check_whole(file, container_of(file))

    return lambda rng: _outcome(read, damaged(rng.choice(videos), rng))


def decoder_target() -> Callable[[random.Random], tuple[str, str]]:
    """Files, damaged, to the process that decodes."""
    videos = [_video(*form) for form in _FORMS]
    read = partial(probe, backend="auto", limits=VideoLimits(timeout_s=20.0, max_pixels=2**22, check="frames"))
    return lambda rng: _outcome(read, damaged(rng.choice(videos), rng))


def row_target() -> Callable[[random.Random], tuple[str, str]]:
    """The media of a pack of a video and a picture, changed, to the patches that a loader makes of it."""
    pack = _pack()
    line = json.dumps([media.to_json() for media in pack.media]).encode()
    limits = pack_limits(64, 64, _VISION, _PAD + 1, _PAD)
    columns = pack.to_columns()
    assert not check_pack(pack, limits)

    def attempt(rng: random.Random) -> tuple[str, str]:
        hit = mutated(line, [line], rng)
        try:
            changed = Pack.from_columns(columns | {"media": json.loads(hit)})
            if check_pack(changed, limits):
                return "breaks the contract", ""
            pack_row(changed)
            for media, data in zip(changed.media, changed.media_data(), strict=True):
                if media.row:
                    row_patches(data, media, media.row, _VISION)
        except BadMediaError:
            return "bad media", ""
        except ValueError:
            return "refused", ""
        except Exception as error:  # noqa: BLE001  (the campaign looks for exceptions of any kind)
            return "wrong", f"{type(error).__name__}: {error}: {hit!r}"
        return "a sound pack", ""

    return attempt


def _pack() -> Pack:
    """A picture and a video of two rows, of which the second has one frame."""
    frames = []
    for number in range(4):
        file = BytesIO()
        Image.effect_noise((32, 32), 20 * number + 1).convert("RGB").save(file, "PNG")
        frames.append(file.getvalue())
    shown = ([frames[0]], frames[1:3], frames[3:])
    media = []
    for place, pictures in enumerate(shown):
        row, start, size = None, 1 + 5 * place, sum(map(len, pictures))
        if place:
            seconds = (place - 1.0, place - 0.5)[: len(pictures)]
            row = Row(place - 1, 2, 1.0, seconds, tuple(map(len, pictures)))
        kind = "video" if row else "image"
        media.append(Media(kind, start, start + 4, (32, 32), (1, 4, 4), size, row))
    ids = [1, *[_PAD + 1] * 4, 1, *[_PAD] * 4, 1, *[_PAD] * 4, 2, 3]
    return Pack(
        input_ids=np.array(ids, np.int32),
        cu_seqlens=np.array([0, len(ids)], np.int32),
        targets=np.array([[len(ids) - 1, len(ids)]], np.int32),
        target_weights=np.ones(1),
        sample_weights=np.ones(1),
        samples=np.zeros((1, 2), np.int64),
        media=tuple(media),
        media_bytes=b"".join(b"".join(pictures) for pictures in shown),
    )
