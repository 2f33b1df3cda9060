"""Sizes of images from their headers, limits, and a name for what is no image; Pillow's own decoder is the oracle."""

import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from lmms.configs.contract.media.images import PNG_TEXT_BYTES
from lmms.prep.media.images import image_size
from lmms.prep.reject import REASONS, Reject
from tests.kit.media.pictures import (
    FILES,
    HEIGHT,
    LEVELS,
    MAX_PIXELS,
    WIDTH,
    Level,
    chunk,
    decoded_size,
    encoded,
    encoded_twice,
    outcome,
    picture,
    png_with,
    turned,
)

XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("level", LEVELS)
def test_every_format_has_the_size_that_pillow_decodes(name: str, level: Level) -> None:
    data = FILES[name]()
    assert image_size(data, level, MAX_PIXELS) == decoded_size(data)
    assert image_size(data + b"trailing bytes", level, MAX_PIXELS) == decoded_size(data)


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
def test_the_size_is_that_after_orientation(name: str, orientation: int) -> None:
    data = encoded(name, exif=turned(orientation))
    expected = (HEIGHT, WIDTH) if orientation in (5, 6, 7, 8) else (WIDTH, HEIGHT)
    assert decoded_size(data) == expected
    assert [image_size(data, level, MAX_PIXELS) for level in LEVELS] == [expected] * 3


EXIF_CHUNK = chunk(b"eXIf", turned(6).tobytes().removeprefix(b"Exif\0\0"))
XMP_CHUNK = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode())


def png_with_raw_profile() -> bytes:
    text, profile = PngInfo(), turned(5).tobytes()
    text.add_text("Raw profile type exif", f"\nexif\n{len(profile):8}\n{profile.hex()}\n")
    return encoded("PNG", pnginfo=text)


ORIENTED: dict[str, Callable[[], bytes]] = {
    "png eXIf before the pixels": lambda: png_with(before=EXIF_CHUNK),
    "png eXIf behind the pixels": lambda: png_with(behind=EXIF_CHUNK),
    "png XMP before the pixels": lambda: png_with(before=XMP_CHUNK),
    "png XMP behind the pixels": lambda: png_with(behind=XMP_CHUNK),
    "png raw profile": png_with_raw_profile,
    "jpeg XMP": lambda: encoded("JPEG", xmp=XMP.encode()),
    "webp XMP": lambda: encoded("WEBP", xmp=XMP.encode()),
    "tiff XMP": lambda: encoded("TIFF", tiffinfo={700: XMP.encode()}, compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", ORIENTED)
def test_an_orientation_is_found_wherever_pillow_looks_for_it(name: str) -> None:
    data = ORIENTED[name]()
    assert decoded_size(data) == (HEIGHT, WIDTH)
    assert [image_size(data, level, MAX_PIXELS) for level in LEVELS] == [(HEIGHT, WIDTH)] * 3


def test_metadata_behind_a_second_frame_does_not_count() -> None:
    data = encoded_twice("PNG")
    start = data.index(b"fdAT") - 4
    data = data[:start] + EXIF_CHUNK + data[start:]
    assert decoded_size(data) == (WIDTH, HEIGHT)
    assert [image_size(data, level, MAX_PIXELS) for level in LEVELS] == [(WIDTH, HEIGHT)] * 3


def huge_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def huge_ico() -> bytes:
    data = huge_png(100_000, 100_000)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(data), 22) + data


HUGE: dict[str, Callable[[], bytes]] = {
    "png": lambda: huge_png(100_000, 100_000),
    "png beyond 32 bits": lambda: huge_png(2**31 - 1, 2**31 - 1),
    "ico": huge_ico,
    "gif": lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\2\0;",
    "bmp": lambda: b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 10**6, 10**6, 1, 24, 0, 0, 0, 0, 0, 0),
    "webp": lambda: b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff" * 6,
    "ppm": lambda: b"P6 100000 100000 255\n",
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("level", LEVELS)
def test_too_many_pixels_are_seen_in_the_header(name: str, level: Level) -> None:
    """Decoding any of these would take gigabytes."""
    assert outcome(HUGE[name](), level) == "too_many_pixels"


@pytest.mark.parametrize("level", LEVELS)
def test_the_limit_of_pixels_is_exact_and_pillows_own_is_left_alone(level: Level) -> None:
    data, before = encoded("PNG"), Image.MAX_IMAGE_PIXELS
    assert outcome(data, level, max_pixels=WIDTH * HEIGHT) == (WIDTH, HEIGHT)
    assert outcome(data, level, max_pixels=WIDTH * HEIGHT - 1) == "too_many_pixels"
    assert outcome(data, level, max_pixels=WIDTH * HEIGHT // 3) == "too_many_pixels"
    assert before == Image.MAX_IMAGE_PIXELS
    if level == "header":  # above the size at which Pillow itself warns, and refuses
        assert image_size(huge_png(15_000, 15_000), level, max_pixels=15_000**2) == (15_000, 15_000)


def test_a_tolerant_pillow_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert outcome(encoded("JPEG")[:-100], "decode") == "decode_error"
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_an_avif_that_names_heic_too_is_read() -> None:
    data = encoded("AVIF").replace(b"miaf", b"heic", 1)
    assert [image_size(data, level, MAX_PIXELS) for level in LEVELS] == [(WIDTH, HEIGHT)] * 3


HEIC = struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"mif1", 0, b"mif1", b"heic") + bytes(50)
ENDS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not_an_image"),
    "text": (b"just text", "not_an_image"),
    "web page": (b"<!DOCTYPE html><html><svg></svg>404</html>", "not_an_image"),
    "web page in XML": (b'<?xml version="1.0"?><html><svg></svg>404</html>', "not_an_image"),
    "zeros": (bytes(1000), "not_an_image"),
    "svg": (b'\xef\xbb\xbf <?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "svg, bare": (b"<svg></svg>", "SVG"),
    "heic of a header alone": (HEIC, "decode_error"),
    "tga": (encoded("TGA"), "TGA"),
    "tga, packed": (encoded("TGA", compression="tga_rle"), "TGA"),
    "tga, grey": (encoded("TGA", "L"), "TGA"),
    "tga, colours": (encoded("TGA", "P"), "TGA"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "not_an_image"),
    "jpeg xl": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "jpeg xl stream": (b"\xff\x0a\xff\x07", "JPEG XL"),
    "pdf": (b"%PDF-1.7", "PDF"),
    "postscript, which starts a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "jpeg header alone": (b"\xff\xd8\xff\xe0\0\x10JFIF\0", "decode_error"),
    "png without size": (huge_png(0, 9), "decode_error"),
    "jpeg without height": (
        encoded("JPEG").replace(struct.pack(">BHH", 8, HEIGHT, WIDTH), b"\x08\0\0\0%"),
        "decode_error",
    ),
    "gif without size": (b"GIF89a\0\0\0\0\0\0\0,\0\0\0\0\0\0\0\0\0\2\0;", "decode_error"),
    "damaged exif": (png_with(before=chunk(b"eXIf", b"no directory")), "decode_error"),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_no_usable_image_has_a_name(name: str, level: Level) -> None:
    data, expected = ENDS[name]
    with pytest.raises(Reject) as caught:
        image_size(data, level, MAX_PIXELS)
    if expected in REASONS:
        assert caught.value.reason == expected
    else:
        assert caught.value.reason == "unsupported_format"
        assert caught.value.message.startswith(f"{expected} ")


@pytest.mark.parametrize("brand", [b"mif1", b"heic"])
@pytest.mark.parametrize("level", LEVELS)
def test_without_its_extra_heic_names_the_extra(level: Level, brand: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(Reject, match=r"HEIC pictures need .*'lmms\[heif\]', or convert") as caught:
        image_size(HEIC.replace(b"mif1", brand), level, MAX_PIXELS)
    assert caught.value.reason == "unsupported_format"


def test_a_heic_is_measured_upright() -> None:
    image, file = picture(), BytesIO()
    image.info["exif"] = turned(6).tobytes()
    image.save(file, "HEIF")
    assert decoded_size(file.getvalue()) == (HEIGHT, WIDTH)
    assert {outcome(file.getvalue(), level) for level in LEVELS} == {(HEIGHT, WIDTH)}


def test_the_limit_of_pixels_holds_for_heic() -> None:
    data = encoded("HEIF")
    assert {outcome(data, level, max_pixels=WIDTH * HEIGHT) for level in LEVELS} == {(WIDTH, HEIGHT)}
    assert {outcome(data, level, max_pixels=WIDTH * HEIGHT - 1) for level in LEVELS} == {"too_many_pixels"}


def test_a_pointer_of_git_lfs_is_called_so() -> None:
    with pytest.raises(Reject, match=r"Git LFS pointer .* git lfs pull"):
        image_size(ENDS["git lfs"][0], "structure", MAX_PIXELS)


def test_a_cursor_is_no_tga() -> None:
    icon = bytearray(encoded("ICO", sizes=[(16, 16)], bitmap_format="bmp"))
    icon[2] = 2
    assert Image.open(BytesIO(icon)).format == "CUR"
    assert {outcome(bytes(icon), level) for level in LEVELS} == {decoded_size(bytes(icon))}


@pytest.mark.parametrize("kind", ["text", "profile", "profile behind the pixels"])
def test_large_metadata_of_a_png_does_not_matter(kind: str) -> None:
    """Pillow's own limits are 1 MiB a text and 64 MiB in all."""
    large = zlib.compress(bytes(2 * 2**20))
    content = (b"zTXt", b"key\0\0" + large) if kind == "text" else (b"iCCP", b"name\0\0" + large)
    data = png_with(**{"behind" if kind.endswith("pixels") else "before": chunk(*content)})
    assert decoded_size(data) is None
    assert {outcome(data, level) for level in LEVELS} == {(WIDTH, HEIGHT)}
    bomb = png_with(before=chunk(content[0], content[1][: -len(large)] + zlib.compress(bytes(PNG_TEXT_BYTES + 1))))
    with pytest.raises(Reject, match="larger than 64 MiB unpacked; write it without"):
        image_size(bomb, "structure", MAX_PIXELS)


def test_real_pictures_pass_every_level_with_one_size(shared: Path) -> None:
    files = sorted((shared / "data" / "image").glob("*/images/**/*.*"))
    for file in files[::40]:
        data = file.read_bytes()
        assert {image_size(data, level, MAX_PIXELS) for level in LEVELS} == {decoded_size(data)}, file
