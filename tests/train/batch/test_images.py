"""The tensor that enters the vision tower is the processor's own, and what is not as stated is refused."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from pillow_heif import register_heif_opener
from torch import Tensor
from transformers import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from lmms.configs.contract.media.geometry import Vision, image_grid
from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.contract.pack import Media
from lmms.configs.errors import TrainError
from lmms.train.batch.images import BadMediaError, image_patches, normalised, pixel_constants
from tests.kit.model.models import TINY_VISION

MODELS = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
SETS = ("chart_opencqa", "doc_photo_mix", "emoji_icons", "nlvr_statements", "raccoon_boxes", "tables_pubtabnet")
COLOURS = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2, "CMYK": 4}


def processor_settings(vision: Vision) -> dict[str, Any]:
    names = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
    size = {"shortest_edge": vision.min_pixels, "longest_edge": vision.max_pixels}
    return {name: getattr(vision, name) for name in names} | {"size": size}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, shape).astype(np.uint8)


def media_of(data: bytes, vision: Vision) -> Media:
    """What prep would store."""
    image = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    grid = image_grid(image.height, image.width, vision)
    return Media("image", 0, 1, image.size, grid, len(data))


def our_pixels(data: bytes, vision: Vision) -> Tensor:
    patches = torch.from_numpy(image_patches(data, media_of(data, vision), vision))
    return normalised(patches, pixel_constants(vision), vision.temporal_patch_size)


def processor_pixels(data: bytes, vision: Vision) -> Tensor:
    image = ImageOps.exif_transpose(Image.open(BytesIO(data)))
    processor = Qwen2VLImageProcessorPil(**processor_settings(vision))
    pixels: Tensor = processor(image, return_tensors="pt")["pixel_values"]
    return pixels


def real_pictures(shared: Path) -> Iterator[Path]:
    for name in SETS:
        files = sorted((shared / "data" / "image" / name / "images").iterdir())
        yield from files[:: len(files) // 5]


@pytest.mark.parametrize("model", MODELS)
def test_pixels_of_real_pictures_are_the_processors_bit_for_bit(
    shared: Path, model_folders: dict[str, Path], model: str
) -> None:
    vision = read_model_folder(model_folders[model]).vision
    assert vision is not None
    modes = set()
    for path in real_pictures(shared):
        data = path.read_bytes()
        modes.add(Image.open(BytesIO(data)).mode)
        assert torch.equal(our_pixels(data, vision), processor_pixels(data, vision)), path.name
    assert modes >= {"RGB", "RGBA", "P"}


def test_pixels_differ_little_from_the_torchvision_back_end(shared: Path, model_folders: dict[str, Path]) -> None:
    """The bounds are what was measured on these pictures, in steps of 1/255: see docs/decisions.md."""
    vision = read_model_folder(model_folders["qwen3-vl"]).vision
    assert vision is not None
    processor = Qwen2VLImageProcessor(**processor_settings(vision))
    steps = []
    for path in real_pictures(shared):
        data = path.read_bytes()
        theirs = processor(ImageOps.exif_transpose(Image.open(BytesIO(data))), return_tensors="pt")["pixel_values"]
        steps.append((our_pixels(data, vision) - theirs).abs() * 255 * vision.image_std[0])
    assert max(float(s.max()) for s in steps) < 30
    assert float(torch.cat(steps).mean()) < 0.05


@pytest.mark.parametrize("mode", COLOURS)
def test_pixels_of_every_mode_are_the_processors(mode: str) -> None:
    channels = COLOURS[mode]
    pixels = noise(50, 70, channels) if channels > 1 else noise(50, 70)
    data = encoded(Image.frombytes(mode, (70, 50), pixels.tobytes()), "TIFF")
    assert Image.open(BytesIO(data)).mode == mode
    assert torch.equal(our_pixels(data, TINY_VISION), processor_pixels(data, TINY_VISION))


@pytest.mark.parametrize("transparency", [None, 3])
def test_pixels_of_palettes_are_the_processors(transparency: int | None) -> None:
    image = Image.fromarray(noise(50, 70, 3)).quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    data = encoded(image, **options)
    assert Image.open(BytesIO(data)).mode == "P"
    assert torch.equal(our_pixels(data, TINY_VISION), processor_pixels(data, TINY_VISION))


def test_what_is_transparent_becomes_white() -> None:
    data = encoded(Image.new("RGBA", (32, 32), (200, 0, 0, 0)))
    assert (image_patches(data, media_of(data, TINY_VISION), TINY_VISION) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright_before_anything_else(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(noise(40, 24, 3)), exif=exif)
    media = media_of(data, TINY_VISION)
    assert media.size == ((24, 40) if orientation < 5 else (40, 24))
    assert torch.equal(our_pixels(data, TINY_VISION), processor_pixels(data, TINY_VISION))


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(kind: str) -> None:
    grey = np.array([[0, 255, 257, 32896, 65280, 65535, 128, 129] * 4] * 32, np.uint16)
    data = encoded(Image.fromarray(grey), kind)
    patches = image_patches(data, media_of(data, TINY_VISION), TINY_VISION)
    assert set(np.unique(patches).tolist()) == {0, 1, 128, 254, 255}


def test_normalising_is_exact_for_every_value() -> None:
    values = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, -1)
    found = normalised(values, pixel_constants(TINY_VISION), 1).view(3, 256).numpy()
    rescaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    mean, std = (np.array(v, np.float32)[:, None] for v in (TINY_VISION.image_mean, TINY_VISION.image_std))
    assert (found == (rescaled - mean) / std).all()


def test_a_truncated_picture_is_refused() -> None:
    data = encoded(Image.fromarray(noise(64, 64, 3)))
    with pytest.raises(BadMediaError, match="decoded"):
        image_patches(data[: len(data) // 2], media_of(data, TINY_VISION), TINY_VISION)


def test_bytes_that_are_no_picture_are_refused() -> None:
    media = media_of(encoded(Image.new("RGB", (16, 16))), TINY_VISION)
    with pytest.raises(BadMediaError, match="decoded"):
        image_patches(b"<html>not found</html>", media, TINY_VISION)


def test_a_picture_of_another_size_is_refused() -> None:
    data = encoded(Image.new("RGB", (24, 16)))
    media = media_of(data, TINY_VISION)
    with pytest.raises(BadMediaError, match="24x16, the shard states 32x16"):
        image_patches(data, replace(media, size=(32, 16)), TINY_VISION)
    with pytest.raises(BadMediaError, match="24x16 upright, the shard states 16x24"):
        image_patches(data, replace(media, size=(16, 24)), TINY_VISION)


def test_a_size_that_a_record_asked_for_gives_the_pixels_of_the_picture_resized_so() -> None:
    data = encoded(Image.fromarray(noise(50, 70, 3)))
    side = TINY_VISION.factor
    asked = (6 * side, 3 * side)
    resized = encoded(Image.open(BytesIO(data)).resize(asked))
    grid = image_grid(asked[1], asked[0], TINY_VISION)
    assert grid != media_of(data, TINY_VISION).grid_thw
    patches = image_patches(data, replace(media_of(data, TINY_VISION), grid_thw=grid), TINY_VISION)
    ours = normalised(torch.from_numpy(patches), pixel_constants(TINY_VISION), TINY_VISION.temporal_patch_size)
    assert torch.equal(ours, processor_pixels(resized, TINY_VISION))


def test_a_header_with_too_many_pixels_is_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new("L", (4000, 2000)))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("pixels were decoded"))
    with pytest.raises(BadMediaError, match="4000x2000"):
        image_patches(data, Media("image", 0, 1, (40, 20), (1, 4, 10), len(data)), TINY_VISION)


def test_the_real_16_bit_ramp_has_the_grey_that_its_expected_file_asks_for(shared: Path) -> None:
    expected = json.loads((shared / "data/image/edge_cases.expected.json").read_text())["records"]["png-16bit-grey"]
    check = expected["check_rgb"]
    data = (shared / "data/image/edge_cases/grey16.png").read_bytes()
    vision = replace(TINY_VISION, patch_size=16, merge_size=2, min_pixels=32 * 32, max_pixels=256 * 64)
    patches = image_patches(data, Media("image", 0, 16, (256, 64), (1, 4, 16), len(data)), vision)
    # (128, 32) is the first pixel of the patch in row 2 and column 8: the first of square (1, 4).
    assert (check["x"], check["y"]) == (128, 32)
    rgb = patches[(1 * 8 + 4) * 4].reshape(3, 16, 16)[:, 0, 0]
    assert np.abs(rgb.astype(int) - check["about"]).max() <= check["tolerance"]


def test_a_damaged_avif_is_refused() -> None:
    data = bytearray(encoded(Image.fromarray(noise(64, 64, 3)), "AVIF"))
    media = media_of(bytes(data), TINY_VISION)
    payload = data.index(b"mdat") + 4
    data[payload : payload + 64] = b"\xff" * 64
    with pytest.raises(BadMediaError, match="decoded"):
        image_patches(bytes(data), media, TINY_VISION)


def test_a_format_that_prep_does_not_accept_is_not_opened() -> None:
    data = encoded(Image.fromarray(noise(16, 16, 3)), "TGA")
    assert Image.open(BytesIO(data)).format == "TGA"
    with pytest.raises(BadMediaError, match="decoded"):
        image_patches(data, media_of(data, TINY_VISION), TINY_VISION)


def test_a_heic_is_decoded_with_its_extra_and_stops_a_run_without(monkeypatch: pytest.MonkeyPatch) -> None:
    register_heif_opener()
    data = encoded(Image.fromarray(noise(40, 24, 3)), "HEIF")
    media = media_of(data, TINY_VISION)
    assert torch.equal(our_pixels(data, TINY_VISION), processor_pixels(data, TINY_VISION))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(TrainError, match=r"the shards hold HEIC pictures.*lmms\[heif\]"):
        image_patches(data, media, TINY_VISION)


def test_metadata_of_any_length_is_decoded_as_prep_accepts_it() -> None:
    text = PngInfo()
    text.add_text("key", "x" * 2**21, zip=True)
    data = encoded(Image.fromarray(noise(16, 16, 3)), pnginfo=text)
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(BytesIO(data)).load()
    plain = encoded(Image.fromarray(noise(16, 16, 3)))
    media = replace(media_of(plain, TINY_VISION), bytes=len(data))
    patches = image_patches(data, media, TINY_VISION)
    assert (patches == image_patches(plain, media, TINY_VISION)).all()
