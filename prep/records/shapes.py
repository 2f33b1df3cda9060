"""Boxes and points of a picture: parts of a turn that become text when the picture's final size is known.

Until then a shape moves with its picture. `norm1000` writes thousandths of the picture's width and height, `absolute`
pixels of the picture as the model sees it, after the processor's resize.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from lmms.configs.settings.sources import Coords
from lmms.prep.reject import Reject

Point: TypeAlias = tuple[float, float]
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""
Kind: TypeAlias = Literal["box", "points"]
Unit: TypeAlias = Literal["pixel", "share"]

_ROUNDING = 1e-6
"""Share of a side by which a point may leave its picture: turning and scaling round."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A box, a point, or a row of points in a picture."""

    kind: Kind
    points: tuple[Point, ...]
    """x and y from the left and the top, in pixels or as a share; of a box its four corners."""
    image: int
    """Number of the picture among those of the record."""
    place: str
    """The place of the shape in the raw record."""
    unit: Unit = "pixel"
    stated: Size | None = None
    """The size of the picture that the points are for, as the record states it."""


def parse_shape(
    kind: Kind, value: object, image: int, place: str, unit: Unit = "pixel", stated: Size | None = None
) -> Shape:
    """The shape of a flat list of numbers: x1, y1, x2, y2 of a box, or x, y of each point. Raises Reject."""
    numbers = value if isinstance(value, list | tuple) else ()
    are_numbers = all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) < 2**31 for n in numbers)
    fits = len(numbers) == 4 if kind == "box" else numbers and len(numbers) % 2 == 0
    if not are_numbers or not fits:
        expected = "four numbers x1, y1, x2, y2" if kind == "box" else "numbers x, y"
        raise Reject("bad_box", f"{str(value)[:60]!r} is no {kind.rstrip('s')}; expected {expected}", place)
    if kind == "points":
        return Shape(kind, tuple(zip(numbers[::2], numbers[1::2], strict=True)), image, place, unit, stated)
    left, top, right, bottom = numbers
    if left > right or top > bottom:
        message = f"the box {[*numbers]} ends before it begins; expected x1 <= x2 and y1 <= y2"
        raise Reject("bad_box", message, place)
    return Shape(kind, ((left, top), (right, top), (right, bottom), (left, bottom)), image, place, unit, stated)


def in_pixels(shape: Shape, size: Size) -> Shape:
    """The shape in pixels of its picture, which has this size. Raises Reject for a shape of another picture."""
    if shape.stated not in (None, size):
        message = f"the record states {_sides(shape.stated)} pixels, the picture has {_sides(size)}"
        raise Reject("bad_box", message, shape.place)
    width, height = (1, 1) if shape.unit == "share" else size
    slack = _ROUNDING * max(width, height)
    for x, y in shape.points:
        if not (-slack <= x <= width + slack and -slack <= y <= height + slack):
            message = f"the {shape.kind.rstrip('s')} at {x:g}, {y:g} leaves its picture of {_sides((width, height))}"
            raise Reject("bad_box", message, shape.place)
    if shape.unit == "pixel":
        return replace(shape, stated=None)
    points = tuple((x * size[0], y * size[1]) for x, y in shape.points)
    return replace(shape, points=points, unit="pixel", stated=None)


def shape_text(shape: Shape, size: Size, resized: Size, coords: Coords) -> str:
    """The shape as the model writes it, such as [12, 30, 48, 91]. size: of the picture; resized: as the model sees it.

    Raises Reject.
    """
    shape = in_pixels(shape, size)
    full = (1000, 1000) if coords == "norm1000" else resized
    points = _corners(shape.points) if shape.kind == "box" else shape.points
    scaled = [min(max(round(v / size[i] * full[i]), 0), full[i]) for point in points for i, v in enumerate(point)]
    return str(scaled)


def _corners(points: Sequence[Point]) -> tuple[Point, Point]:
    """The first and the last corner of the upright box around all points."""
    xs, ys = zip(*points, strict=True)
    return (min(xs), min(ys)), (max(xs), max(ys))


def _sides(size: Size | None) -> str:
    return f"{size[0]} x {size[1]}" if size else "no"
