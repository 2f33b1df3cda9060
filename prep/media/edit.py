"""Changes of a picture that keep all of it in view: each says what becomes of the pixels, of a point, and of the size.

Nothing is cropped, so no box is lost. Points are measured from the left and the top in pixels: (0, 0) is the outer
corner of the first pixel, (width, height) that of the last.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from lmms.configs.contract.media.images import DAMAGE, FORMATS, is_heic, strict_pillow, to_rgb
from lmms.prep.reject import Reject

Point = tuple[float, float]
Size = tuple[int, int]
Colour = tuple[int, int, int]

_PNG_LEVEL = 2
"""A photo is written in a third of the time of Pillow's level 6, and is as large."""


class Edit(Protocol):
    """One change of a picture."""

    def size(self, size: Size) -> Size:
        """(width, height) of the picture afterwards."""
        ...

    def point(self, point: Point, size: Size) -> Point:
        """The place of a point afterwards. size: of the picture before."""
        ...

    def pixels(self, image: Image.Image) -> Image.Image:
        """The picture afterwards, in mode RGB."""
        ...


@dataclass(frozen=True, slots=True)
class Flip:
    """Left and right, or top and bottom, change places."""

    axis: Literal["x", "y"]

    def size(self, size: Size) -> Size:
        return size

    def point(self, point: Point, size: Size) -> Point:
        x, y = point
        return (size[0] - x, y) if self.axis == "x" else (x, size[1] - y)

    def pixels(self, image: Image.Image) -> Image.Image:
        across = self.axis == "x"
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT if across else Image.Transpose.FLIP_TOP_BOTTOM)


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn clockwise about the middle, on a canvas that holds the whole picture."""

    degrees: float
    fill: Colour

    def size(self, size: Size) -> Size:
        cosine, sine = self._direction()
        width, height = size
        across = abs(width * cosine) + abs(height * sine)
        down = abs(width * sine) + abs(height * cosine)
        return math.ceil(across - 1e-6), math.ceil(down - 1e-6)

    def point(self, point: Point, size: Size) -> Point:
        cosine, sine = self._direction()
        x, y = point[0] - size[0] / 2, point[1] - size[1] / 2
        width, height = self.size(size)
        return cosine * x - sine * y + width / 2, sine * x + cosine * y + height / 2

    def pixels(self, image: Image.Image) -> Image.Image:
        cosine, sine = self._direction()
        width, height = self.size(image.size)
        # Pillow asks for the place in the old picture of each place in the new one.
        x = image.width / 2 - cosine * width / 2 - sine * height / 2
        y = image.height / 2 + sine * width / 2 - cosine * height / 2
        back = (cosine, sine, x, -sine, cosine, y)
        is_quarter = self.degrees % 90 == 0
        resampling = Image.Resampling.NEAREST if is_quarter else Image.Resampling.BICUBIC
        return image.transform((width, height), Image.Transform.AFFINE, back, resampling, fillcolor=self.fill)

    def _direction(self) -> tuple[float, float]:
        """Cosine and sine, exact for quarters."""
        if self.degrees % 90 == 0:
            return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(self.degrees // 90) % 4]
        angle = math.radians(self.degrees)
        return math.cos(angle), math.sin(angle)


@dataclass(frozen=True, slots=True)
class Resize:
    """Another width and height."""

    width: int
    height: int

    def size(self, size: Size) -> Size:
        return self.width, self.height

    def point(self, point: Point, size: Size) -> Point:
        return point[0] / size[0] * self.width, point[1] / size[1] * self.height

    def pixels(self, image: Image.Image) -> Image.Image:
        return image.resize((self.width, self.height), Image.Resampling.BICUBIC)


@dataclass(frozen=True, slots=True)
class Margin:
    """A margin of these widths, in pixels."""

    left: int
    top: int
    right: int
    bottom: int
    fill: Colour

    def size(self, size: Size) -> Size:
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom

    def point(self, point: Point, size: Size) -> Point:
        return point[0] + self.left, point[1] + self.top

    def pixels(self, image: Image.Image) -> Image.Image:
        wider = Image.new("RGB", self.size(image.size), self.fill)
        wider.paste(image, (self.left, self.top))
        return wider


@dataclass(frozen=True, slots=True)
class Jitter:
    """Factors of the picture's brightness, contrast and saturation, in this order."""

    brightness: float
    contrast: float
    saturation: float

    def size(self, size: Size) -> Size:
        return size

    def point(self, point: Point, size: Size) -> Point:
        return point

    def pixels(self, image: Image.Image) -> Image.Image:
        image = ImageEnhance.Brightness(image).enhance(self.brightness)
        image = ImageEnhance.Contrast(image).enhance(self.contrast)
        return ImageEnhance.Color(image).enhance(self.saturation)


def edited(data: bytes, edits: Sequence[Edit], jpeg_quality: int | None) -> tuple[bytes, Size]:
    """The bytes and the size of the picture after these edits: PNG, or JPEG of a quality from 1 to 100.

    data: of a picture whose header was read by image_size before. Raises Reject.
    """
    rgb = _upright(data)
    for edit in edits:
        rgb = edit.pixels(rgb)
    buffer = BytesIO()
    if jpeg_quality is None:
        rgb.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    else:
        rgb.save(buffer, "JPEG", quality=jpeg_quality)
    return buffer.getvalue(), rgb.size


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], upright; data as in edited. Raises Reject."""
    return np.asarray(_upright(data))


def _upright(data: bytes) -> Image.Image:
    formats = ("HEIF",) if is_heic(data) else FORMATS
    try:
        with strict_pillow(None), Image.open(BytesIO(data), formats=formats) as image:
            return to_rgb(ImageOps.exif_transpose(image), image.format)
    except DAMAGE as error:
        raise Reject("decode_error", f"the picture cannot be decoded: {type(error).__name__}: {error}") from error


def png_of(picture: Image.Image) -> bytes:
    """A picture in memory as PNG, turned as its EXIF data says, with nothing lost that a model sees."""
    data = BytesIO()
    to_rgb(ImageOps.exif_transpose(picture), picture.format).save(data, "PNG", compress_level=_PNG_LEVEL)
    return data.getvalue()
