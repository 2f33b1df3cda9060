"""Cut-off and damaged files: found without decoding, or no different from whole ones."""

import random
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction

import pytest
from PIL import Image, ImageFile

from lmms.prep.media.images import image_size
from lmms.prep.reject import REASONS
from tests.kit.media.pictures import (
    FILES,
    HEIGHT,
    LEVELS,
    MAX_PIXELS,
    WIDTH,
    chunk,
    decoded_size,
    encoded,
    encoded_twice,
    outcome,
    picture,
    png_with,
)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_off_file_is_rejected_or_loses_nothing(name: str) -> None:
    data = FILES[name]()
    whole = decoded_size(data)
    lengths = random.Random(name).sample(range(len(data)), min(len(data), 150))
    for length in {*range(20), len(data) // 2, *lengths, *range(len(data) - 20, len(data))}:
        found = outcome(data[:length], "structure")
        assert found in ("not_an_image", "decode_error", whole), length
        assert found != whole or decoded_size(data[:length]) == whole, length
    assert outcome(data[: len(data) // 3], "structure") in ("not_an_image", "decode_error")


@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes_are_rejected_or_measured_as_pillow_would(name: str) -> None:
    """Bounded form of the campaign: 400,000 such files of 48 kinds, at each level, left nothing unnamed."""
    data, rng = FILES[name](), random.Random(name)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 2, 4))):
            damaged[rng.randrange(min(len(data), rng.choice((64, 400, 10**6))))] = rng.choice((0, 1, 127, 128, 255))
        found = {level: outcome(bytes(damaged), level, max_pixels=10**6) for level in LEVELS}
        assert all(isinstance(end, tuple) or end in REASONS for end in found.values())
        expected = decoded_size(bytes(damaged))
        if expected and expected[0] * expected[1] <= 10**6:
            if name.startswith("heic") and found["header"] != expected:
                # libheif may decode another size than the header states; training refuses such a picture, too.
                assert found["structure"] == found["decode"] == "decode_error"
                continue
            assert found["header"] == found["decode"] == expected
            assert found["structure"] in (expected, "decode_error")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg") and name != "jpeg2000"])
def test_a_jpeg_is_refused_by_decode_where_pillow_refuses_to_decode_its_pixels(name: str) -> None:
    """Bounded form of the campaign: 16,000 such files, no difference."""
    data, rng = FILES[name](), random.Random(name)
    markers = [at + 1 for at in range(2, len(data) - 1) if data[at] == 0xFF and data[at + 1] not in (0, 0xFF)]
    refused = 0
    for _ in range(150):
        damaged = bytearray(data)
        match rng.randrange(3):
            case 0:
                damaged[rng.randrange(3, len(data))] ^= 1 << rng.randrange(8)
            case 1:
                damaged[rng.choice(markers)] = rng.randrange(256)
            case _:
                at = rng.randrange(3, len(data))
                del damaged[at : at + rng.randrange(1, 99)]
        expected = decoded_size(bytes(damaged))
        if not expected or expected[0] * expected[1] <= 10**6:
            found = outcome(bytes(damaged), "decode", max_pixels=10**6)
            assert (found if isinstance(found, tuple) else None) == expected
            refused += not expected
    assert 5 < refused < 145


def test_a_lossless_jpeg_which_has_no_smaller_size_is_decoded_in_full() -> None:
    av = pytest.importorskip("av", reason="the extra video is not installed: it encodes such a JPEG")
    encoder = av.CodecContext.create("ljpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = WIDTH, HEIGHT, "yuvj444p", Fraction(1)
    encoder.options = {"strict": "-2"}
    (packet,) = encoder.encode(av.VideoFrame.from_image(picture()).reformat(format="yuvj444p"))
    data = bytes(packet)
    assert outcome(data, "decode") == decoded_size(data) == (WIDTH, HEIGHT)
    assert outcome(data[:-400], "decode") == "decode_error"


def test_of_common_formats_structure_decodes_no_pixels_and_of_none_the_header_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walked = ("jpeg", "jpeg progressive", "png", "webp")
    files = {name: FILES[name]() for name in (*walked, "gif", "tiff lzw", "avif")}

    def refuse(image: Image.Image) -> None:
        raise AssertionError("pixels were decoded")

    for opener in (ImageFile.ImageFile, *ImageFile.ImageFile.__subclasses__()):
        if "load" in vars(opener):
            monkeypatch.setattr(opener, "load", refuse)
    for name, data in files.items():
        assert image_size(data, "header", MAX_PIXELS) == (WIDTH, HEIGHT)
        if name in walked:
            assert image_size(data, "structure", MAX_PIXELS) == (WIDTH, HEIGHT)
        for level in ("decode",) if name in walked else ("structure", "decode"):
            with pytest.raises(AssertionError, match="pixels were decoded"):
                image_size(data, level, MAX_PIXELS)  # type: ignore[arg-type]


def lying_tiff() -> bytes:
    data = encoded("TIFF")
    count = struct.pack("<HHII", 279, 4, 1, 3 * WIDTH * HEIGHT)
    assert data.count(count) == 1
    return data.replace(count, struct.pack("<HHII", 279, 4, 1, 10))


def clockless_avif() -> bytes:
    """A sequence of 0 time units a second, by which Pillow divides."""
    data = encoded_twice("AVIF")
    at = data.index(b"mdhd") + 24
    return data[:at] + bytes(4) + data[at + 4 :]


STRUCTURE_FAULTS: dict[str, Callable[[], bytes]] = {
    "jpeg of an unknown process": lambda: encoded("JPEG").replace(b"\xff\xc0", b"\xff\xc5", 1),
    "jpeg with a second start": lambda: (d := encoded("JPEG"))[:2] + d,
    "jpeg without a scan": lambda: (d := encoded("JPEG"))[: d.index(b"\xff\xda")] + b"\xff\xd9" + d[-400:],
    "jpeg without end": lambda: encoded("JPEG")[:-2],
    "png with a wrong checksum": lambda: (d := encoded("PNG"))[:-17] + bytes([d[-17] ^ 1]) + d[-16:],
    "png with parted pixels": lambda: (
        (d := encoded("PNG"))[:33] + chunk(b"IDAT", b"") + chunk(b"tEXt", b"a\0b") + d[33:]
    ),
    "png of which a late text is cut off": lambda: png_with(behind=chunk(b"tEXt", b"key\0text"))[:-20],
    "png without pixels": lambda: encoded("PNG")[:33] + chunk(b"IEND", b""),
    "gif without a frame": lambda: (d := encoded("GIF", "P"))[: d.index(b",", 781)] + b";",
    "tiff with a strip outside": lambda: encoded("TIFF", compression="tiff_lzw").replace(
        struct.pack("<HHII", 273, 4, 1, 8), struct.pack("<HHII", 273, 4, 1, 10**6)
    ),
    "raw tiff cut off behind a lying byte count": lambda: lying_tiff()[:-100],
    "avif sequence without a clock": clockless_avif,
    "avif without its items": lambda: encoded("AVIF").replace(b"iloc", b"free", 1),
}


@pytest.mark.parametrize("name", STRUCTURE_FAULTS)
def test_a_faulty_structure_is_a_decode_error(name: str) -> None:
    assert outcome(STRUCTURE_FAULTS[name](), "structure") == "decode_error"


PNG = encoded("PNG")
DECODED_NONE_THE_LESS = {
    "without IEND": PNG[:-12],
    "cut off inside IEND": PNG[:-5],
    "a wrong checksum of the pixels": PNG[:-16] + bytes([PNG[-16] ^ 1]) + PNG[-15:],
    "a wrong checksum in a late text": png_with(behind=chunk(b"tEXt", b"key\0text")[:-1] + b"?"),
}


@pytest.mark.parametrize("name", DECODED_NONE_THE_LESS)
def test_a_png_that_training_decodes_in_full_is_accepted_at_every_level(name: str) -> None:
    data = DECODED_NONE_THE_LESS[name]
    assert [outcome(data, level) for level in LEVELS] == [decoded_size(data)] * 3


def test_each_level_finds_what_it_promises() -> None:
    cut, damaged = encoded("PNG")[:-40], bytearray(encoded("PNG"))
    start = damaged.index(b"IDAT")
    damaged[start + 4 : start + 6] = b"\0\0"  # no zlib stream, under a checksum that fits
    end = start + 4 + struct.unpack_from(">I", damaged, start - 4)[0]
    damaged[end : end + 4] = struct.pack(">I", zlib.crc32(damaged[start:end]))
    size = (WIDTH, HEIGHT)
    assert [outcome(cut, level) for level in LEVELS] == [size, "decode_error", "decode_error"]
    assert [outcome(bytes(damaged), level) for level in LEVELS] == [size, size, "decode_error"]
