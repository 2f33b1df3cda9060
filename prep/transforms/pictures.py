"""Changes of pictures: the edit of each picture is drawn, and its boxes and points move with it.

An edit is noted in the picture's part and done when the sample is made, all edits of a picture in one go. All pictures
of a record draw for themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lmms.configs.settings.transforms import (
    ColorJitter,
    HorizontalFlip,
    Pad,
    PadToMultiple,
    Rotate,
    Scale,
    VerticalFlip,
)
from lmms.prep.media.edit import Edit, Flip, Jitter, Margin, Resize, Size, Turn
from lmms.prep.records.parts import Image, Part
from lmms.prep.records.record import Message, Record
from lmms.prep.records.shapes import Shape, in_pixels
from lmms.prep.transforms.transform import Apply, Context, Draws

Choose = Callable[[Any, Size, Draws], Edit]
"""Settings, size of the picture -> the edit."""


def of_pictures(choose: Choose) -> Apply:
    """The transform that gives each picture the edit that `choose` draws, in a share `prob` of the pictures."""

    def apply(record: Record, settings: Any, context: Context) -> Sequence[Record]:
        pictures = [context.measured(image) for image in record.images]
        edits = [_drawn(choose, settings, shown_size(p), _numbered(context.draws, i)) for i, p in enumerate(pictures)]
        return [with_edits(record, pictures, edits)]

    return apply


def shown_size(picture: Image) -> Size:
    """Width and height in pixels of a measured picture, after its edits."""
    assert picture.size is not None
    size = picture.size
    for edit in picture.edits:
        size = edit.size(size)
    return size


def with_edits(record: Record, pictures: Sequence[Image], edits: Sequence[Edit | None]) -> Record:
    """The record with these measured pictures, an edit more each, and with the shapes of each where they are then.

    Raises Reject for a shape outside its picture.
    """
    taken = iter(zip(pictures, edits, strict=True))

    def part(old: Part) -> Part:
        if isinstance(old, Image):
            picture, edit = next(taken)
            return replace(picture, edits=(*picture.edits, edit)) if edit else picture
        return _moved(old, pictures[old.image], edits[old.image]) if isinstance(old, Shape) else old

    def turn(old: Message) -> Message:
        return old if isinstance(old.content, str) else replace(old, content=tuple(map(part, old.content)))

    return replace(record, messages=tuple(map(turn, record.messages)))


def _moved(shape: Shape, picture: Image, edit: Edit | None) -> Shape:
    size = shown_size(picture)
    shape = in_pixels(shape, size)
    return replace(shape, points=tuple(edit.point(point, size) for point in shape.points)) if edit else shape


def _numbered(draws: Draws, picture: int) -> Draws:
    return Draws((*draws.key, "picture", picture))


def _drawn(choose: Choose, settings: Any, size: Size, draws: Draws) -> Edit | None:
    is_chosen = draws.uniform("chance") < getattr(settings, "prob", 1.0)
    return choose(settings, size, draws) if is_chosen else None


def hflip(_settings: HorizontalFlip, _size: Size, _draws: Draws) -> Edit:
    """Left and right change places."""
    return Flip("x")


def vflip(_settings: VerticalFlip, _size: Size, _draws: Draws) -> Edit:
    """Top and bottom change places."""
    return Flip("y")


def rotate(settings: Rotate, _size: Size, draws: Draws) -> Edit:
    """A turn by one of the angles, or by an angle within the limits."""
    if settings.angles:
        return Turn(settings.angles[draws.choice("angle", len(settings.angles))], settings.fill)
    assert settings.max_deg is not None
    return Turn(draws.uniform("angle", -settings.max_deg, settings.max_deg), settings.fill)


def scale(settings: Scale, size: Size, draws: Draws) -> Edit:
    """Another size, by one factor for both sides."""
    factor = draws.uniform("factor", settings.lo, settings.hi)
    width, height = (max(1, round(side * factor)) for side in size)
    return Resize(width, height)


def color_jitter(settings: ColorJitter, _size: Size, draws: Draws) -> Edit:
    """Three factors within their limits."""
    limits = {name: getattr(settings, name) for name in ("brightness", "contrast", "saturation")}
    return Jitter(**{name: draws.uniform(name, *pair) for name, pair in limits.items()})


def pad(settings: Pad, size: Size, draws: Draws) -> Edit:
    """A margin of a drawn width on each side."""
    width, height = size
    sides = {"left": width, "top": height, "right": width, "bottom": height}
    drawn = {name: round(side * draws.uniform(name, 0, settings.most)) for name, side in sides.items()}
    return Margin(**drawn, fill=settings.fill)


def pad_to_multiple(settings: PadToMultiple, size: Size, _draws: Draws) -> Edit:
    """A margin at the right and at the bottom."""
    right, bottom = (-side % settings.multiple for side in size)
    return Margin(0, 0, right, bottom, settings.fill)
