"""Record -> sample: a pack of one conversation, with the bytes of its pictures.

A sample has the form of the contract's Pack, so the spool between reading and writing needs no other format.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.geometry import MAX_ASPECT_RATIO, Vision, aspect_ratio, grid_tokens, image_grid
from lmms.configs.contract.pack import Media, Pack
from lmms.prep.media.images import image_size
from lmms.prep.media.read import read_image
from lmms.prep.records.parts import Image
from lmms.prep.records.record import parse_record
from lmms.prep.reject import Reject
from lmms.prep.render.render import Renderer, render_record
from lmms.prep.sources import Source


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Settings that turn a record into a sample, the same for every record of a build."""

    limits: PackLimits
    vision: Vision | None
    verify_media: Literal["header", "structure", "decode"]
    max_image_pixels: int


@dataclass(frozen=True, slots=True)
class _Picture:
    data: bytes
    size: tuple[int, int]
    grid_thw: tuple[int, int, int]


def make_sample(
    value: Any, row: int, source_id: int, source: Source, renderer: Renderer, recipe: Recipe
) -> tuple[Pack, tuple[str, ...]]:
    """The sample of one raw value, and notes on the parts that are not used. Raises Reject."""
    record = parse_record(value, source.reading)
    pictures = [_picture(image, source, recipe) for image in record.images] if recipe.vision else []
    rendered = render_record(renderer, record, [grid_tokens(p.grid_thw, recipe.limits.merge_size) for p in pictures])
    sample = Pack(
        input_ids=rendered.input_ids,
        cu_seqlens=np.array([0, len(rendered.input_ids)], np.int32),
        targets=np.array(rendered.targets, np.int32),
        target_weights=np.array(rendered.weights, np.float64),
        sample_weights=np.array([record.weight], np.float64),
        samples=np.array([[source_id, row]], np.int64),
        media=tuple(
            Media(
                "image",
                start,
                start + grid_tokens(p.grid_thw, recipe.limits.merge_size),
                p.size,
                p.grid_thw,
                len(p.data),
            )
            for start, p in zip(rendered.image_starts, pictures, strict=True)
        ),
        media_bytes=b"".join(p.data for p in pictures),
    )
    _check_limits(sample, recipe.limits)
    return sample, (*record.unused, *(["text that the template leaves out"] if rendered.dropped_text else []))


def _picture(image: Image, source: Source, recipe: Recipe) -> _Picture:
    assert recipe.vision is not None
    try:
        data = read_image(image.ref, source.root)
        width, height = image_size(data, recipe.verify_media, recipe.max_image_pixels)
    except Reject as reject:
        raise Reject(reject.reason, reject.message, image.place) from None
    ratio = aspect_ratio(height, width)
    if ratio > MAX_ASPECT_RATIO:
        message = f"{width} x {height} pixels: aspect ratio {ratio:.1f}, at most {MAX_ASPECT_RATIO} is possible"
        raise Reject("aspect_ratio", message, image.place)
    return _Picture(data, (width, height), image_grid(height, width, recipe.vision))


def _check_limits(sample: Pack, limits: PackLimits) -> None:
    tokens = len(sample.input_ids)
    if tokens > limits.seq_len:
        raise Reject("too_long", f"{tokens} tokens, a pack holds {limits.seq_len}", "messages")
    if sample.patches > limits.max_patches:
        raise Reject("too_many_patches", f"{sample.patches} patches, a pack holds {limits.max_patches}", "messages")
