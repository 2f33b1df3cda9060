"""The rows of a video: which frames, at which size and times, and the frames' own bytes."""

from collections.abc import Sequence
from dataclasses import fields, replace

from lmms.configs.contract.media.video import (
    VideoAsk,
    asked,
    clip_range,
    frame_size,
    row_step,
    rows_of,
    sampled_frames,
)
from lmms.configs.contract.pack import Row
from lmms.configs.settings.sources import Reading
from lmms.prep.media.edit import pixels_of
from lmms.prep.media.images import image_size
from lmms.prep.media.pins import Fetched, pinned
from lmms.prep.media.read import address_of, find_media, read_image
from lmms.prep.records.parts import Video
from lmms.prep.reject import Reject
from lmms.prep.sample.pictures import Picture
from lmms.prep.sample.recipe import Recipe
from lmms.prep.sources import Source
from lmms.prep.video.decode import encoded_frames, probe
from lmms.prep.video.encode import encoded
from lmms.prep.video.facts import FrameFormat
from lmms.prep.video.resize import resized

_LIST_FPS = 2.0
"""Frames a second of a list of frames that states none, as in qwen_vl_utils."""


def read_video(video: Video, source: Source, recipe: Recipe) -> tuple[Picture, ...]:
    """The rows of a video, each as a picture of several frames. Raises Reject, with the place of the part."""
    if recipe.video is None:
        raise Reject("videos_unsupported", "the record has a video, this model reads none", video.place)
    try:
        return (_of_frames if video.files.is_frames else _of_file)(video, source, recipe)
    except Reject as reject:
        raise Reject(reject.reason, reject.message, reject.place or video.place) from None


def ask_of(reading: Reading) -> VideoAsk:
    """What the settings of a source ask for its videos, where a record says nothing."""
    return VideoAsk(**{name: getattr(reading, f"video_{name}") for name in _SETTINGS})


_SETTINGS = tuple(field.name for field in fields(VideoAsk) if field.name not in ("start", "end"))


def _of_file(video: Video, source: Source, recipe: Recipe) -> tuple[Picture, ...]:
    assert recipe.vision is not None
    assert recipe.video is not None
    (ref,) = video.files.refs
    file = find_media(ref, source.roots, "video", network=recipe.network, beside=source.beside, looked=recipe.looked)
    facts = probe(file, recipe.video_backend, recipe.video_limits)
    ask, row = asked((video.ask, ask_of(source.reading))), recipe.vision.temporal_patch_size
    try:
        clip = clip_range(facts.frames, facts.fps, ask)
        numbers = [clip[i] for i in sampled_frames(len(clip), facts.fps, ask, recipe.video, row)]
    except ValueError as error:
        raise Reject("bad_range", str(error)) from None
    size = _resized(facts.size, len(numbers), ask, recipe)
    decoder = (recipe.video_backend, recipe.video_limits)
    frames = encoded_frames(file, numbers, size if recipe.resizes_frames else None, recipe.frame_format, *decoder)
    if recipe.prices:

        def read(places: Sequence[int]) -> list[bytes]:
            return encoded_frames(file, [numbers[i] for i in places], None, FrameFormat("png"), *decoder)

        recipe.prices.measure(len(numbers), read, size, recipe.frame_format.quality, are_files=False)
    step = row_step(len(clip), len(numbers), facts.fps, ask, recipe.video, row)
    seconds = [number / facts.fps for number in numbers]
    stored = size if recipe.resizes_frames else facts.size
    address = address_of(ref, source.beside)
    fetched = pinned(address, file, recipe.pins) if address and isinstance(file, bytes) else None
    fetched = replace(fetched, size=facts.size) if fetched else None
    return _rows(frames, seconds, step, stored, size, fetched, recipe)


def _of_frames(video: Video, source: Source, recipe: Recipe) -> tuple[Picture, ...]:
    assert recipe.vision is not None
    row, fps = recipe.vision.temporal_patch_size, video.sample_fps or _LIST_FPS
    frames, sizes = [], []
    for number, ref in enumerate(video.files.refs):
        try:
            data = read_image(ref, source.roots, network=recipe.network, beside=source.beside, looked=recipe.looked)
            sizes.append(image_size(data, recipe.verify_media, recipe.max_image_pixels))
        except Reject as reject:
            raise Reject(reject.reason, f"frame {number}: {reject.message}", video.place) from None
        frames.append(data)
    if differing := next((size for size in sizes if size != sizes[0]), None):
        message = f"frames of {sizes[0]} and of {differing} pixels; expected all frames of one size"
        raise Reject("bad_part", message)
    ask = asked((video.ask, ask_of(source.reading)))
    size = _resized(sizes[0], -(-len(frames) // row) * row, ask, recipe)
    if recipe.prices:
        files = tuple(frames)
        quality = recipe.frame_format.quality
        recipe.prices.measure(len(files), lambda places: [files[i] for i in places], size, quality, are_files=True)
    if recipe.resizes_frames:
        frames = [encoded(resized(pixels_of(data), *size), recipe.frame_format) for data in frames]
    seconds = [number / fps for number in range(len(frames))]
    stored = size if recipe.resizes_frames else sizes[0]
    return _rows(frames, seconds, row / fps, stored, size, None, recipe)


def _resized(size: tuple[int, int], frames: int, ask: VideoAsk, recipe: Recipe) -> tuple[int, int]:
    """(width, height) in pixels of each frame after the resize."""
    assert recipe.vision is not None
    assert recipe.video is not None
    try:
        height, width = frame_size(size[1], size[0], frames, ask, recipe.video, recipe.vision)
    except ValueError as error:
        raise Reject("aspect_ratio" if "aspect" in str(error) else "bad_part", str(error)) from None
    return width, height


def _rows(
    frames: Sequence[bytes],
    seconds: Sequence[float],
    step: float,
    stored: tuple[int, int],
    size: tuple[int, int],
    fetched: Fetched | None,
    recipe: Recipe,
) -> tuple[Picture, ...]:
    """stored, size: (width, height) of the stored frames, and after the resize."""
    assert recipe.vision is not None
    grid_thw = (1, size[1] // recipe.vision.patch_size, size[0] // recipe.vision.patch_size)
    places = rows_of(range(len(frames)), recipe.vision.temporal_patch_size)
    return tuple(
        Picture(
            data=b"".join(frames[i] for i in place),
            size=stored,
            grid_thw=grid_thw,
            fetched=fetched,
            row=Row(
                number=number,
                rows=len(places),
                step=step,
                seconds=tuple(seconds[i] for i in place),
                bytes=tuple(len(frames[i]) for i in place),
            ),
        )
        for number, place in enumerate(places)
    )
