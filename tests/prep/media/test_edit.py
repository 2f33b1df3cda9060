"""Edits of pictures: points move with the pixels, stay in view, and come back by the inverse."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lmms.prep.media.edit import Edit, Flip, Jitter, Margin, Point, Resize, Size, Turn, edited
from lmms.prep.reject import Reject
from tests.kit.media.boxes import BOX, SIZE, red_box, red_picture

WHITE = (255, 255, 255)
EDITS: list[tuple[Edit, ...]] = [
    (Flip("x"),),
    (Flip("y"),),
    (Turn(90, WHITE),),
    (Turn(-90, WHITE),),
    (Turn(180, WHITE),),
    (Turn(270, WHITE),),
    (Turn(17.3, WHITE),),
    (Turn(-140, WHITE),),
    (Resize(240, 61),),
    (Margin(7, 3, 11, 5, WHITE),),
    (Jitter(0.9, 1.1, 0.9),),
    (Flip("x"), Turn(30, WHITE), Resize(300, 300), Margin(1, 2, 3, 4, WHITE), Turn(90, WHITE), Flip("y")),
]

sides = st.integers(1, 3000)
degrees = st.one_of(st.floats(-360, 360), st.sampled_from([-270.0, -90.0, 0.0, 90.0, 180.0, 270.0]))
edits = st.one_of(
    st.builds(Flip, st.sampled_from(["x", "y"])),
    st.builds(Turn, degrees, st.just(WHITE)),
    st.builds(Resize, sides, sides),
    st.builds(Margin, *[st.integers(0, 500)] * 4, st.just(WHITE)),
    st.just(Jitter(1.0, 2.0, 0.5)),
)
shares = st.floats(0, 1)


def moved(point: Point, size: Size, chain: tuple[Edit, ...]) -> tuple[Point, Size]:
    for edit in chain:
        point, size = edit.point(point, size), edit.size(size)
    return point, size


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("chain", EDITS, ids=lambda chain: "-".join(type(edit).__name__ for edit in chain))
def test_a_drawn_rectangle_is_where_the_moved_box_says(chain: tuple[Edit, ...]) -> None:
    left, top, right, bottom = BOX
    assert red_box(red_picture()) == BOX
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    points, sizes = zip(*(moved(corner, SIZE, chain) for corner in corners), strict=True)
    xs, ys = zip(*points, strict=True)
    data, size = edited(png(red_picture()), chain, None)
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert image.size == size == sizes[0]
        drawn = red_box(image)
    assert drawn == pytest.approx((min(xs), min(ys), max(xs), max(ys)), abs=1.5)


def test_quarters_move_every_pixel_and_lose_none() -> None:
    data, size = edited(png(red_picture()), [Turn(90, WHITE)] * 4, None)
    assert size == SIZE
    with Image.open(io.BytesIO(data)) as image:
        assert image.tobytes() == red_picture().tobytes()


@given(st.tuples(sides, sides), edits, shares, shares)
def test_a_point_of_the_picture_stays_in_view(size: Size, edit: Edit, x: float, y: float) -> None:
    point, after = moved((x * size[0], y * size[1]), size, (edit,))
    assert all(-1e-4 <= point[i] <= after[i] + 1e-4 for i in (0, 1))


@given(st.tuples(sides, sides), edits, shares, shares)
def test_an_edit_and_its_inverse_bring_a_point_back(size: Size, edit: Edit, x: float, y: float) -> None:
    point = (x * size[0], y * size[1])
    there, after = moved(point, size, (edit,))
    if isinstance(edit, Flip):
        back, _ = moved(there, after, (edit,))
    elif isinstance(edit, Resize):
        back, _ = moved(there, after, (Resize(*size),))
    elif isinstance(edit, Turn):
        (u, v), canvas = moved(there, after, (Turn(-edit.degrees, WHITE),))
        # The canvas has grown twice; the middle stays.
        back = (u - (canvas[0] - size[0]) / 2, v - (canvas[1] - size[1]) / 2)
    elif isinstance(edit, Margin):
        back = (there[0] - edit.left, there[1] - edit.top)
    else:
        back = there
    assert math.dist(back, point) < 1e-3


def test_a_jpeg_of_lower_quality_is_smaller() -> None:
    noise = Image.effect_noise((64, 64), 90)
    high, low = (edited(png(noise), [Flip("x")], quality)[0] for quality in (95, 20))
    assert len(low) < len(high)
    with Image.open(io.BytesIO(low)) as image:
        assert image.format == "JPEG"


def test_a_turned_photo_is_edited_as_it_is_shown() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # shown after a quarter clockwise
    red_picture().save(buffer, "PNG", exif=exif)
    data, size = edited(buffer.getvalue(), [Flip("x")], None)
    expected = red_picture().transpose(Image.Transpose.ROTATE_270).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert size == (SIZE[1], SIZE[0])
    with Image.open(io.BytesIO(data)) as image:
        assert image.tobytes() == expected.tobytes()


def test_a_picture_that_is_cut_off_is_rejected() -> None:
    with pytest.raises(Reject, match="cannot be decoded") as caught:
        edited(png(Image.effect_noise((64, 64), 90))[:900], [Flip("x")], None)
    assert caught.value.reason == "decode_error"
