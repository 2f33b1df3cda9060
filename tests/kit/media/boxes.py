"""A picture with a red rectangle, where the red is, and what a build made of it."""

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tokenizers import Tokenizer

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.train.data.shards import PackReader, read_sidecar
from tests.kit.folders import tiny_model_folder

SIZE = (160, 96)
BOX = (24, 16, 88, 56)


def red_picture() -> Image.Image:
    image = Image.new("RGB", SIZE, (0, 0, 0))
    left, top, right, bottom = BOX
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill=(255, 0, 0))
    return image


def red_box(image: Image.Image) -> tuple[int, int, int, int]:
    """The upright box around all red pixels: left, top, right, bottom; right and bottom are behind the last pixel."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 100) & (pixels[..., 1] < 100) & (pixels[..., 2] < 100))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def write_boxes(folder: Path, records: list[dict[str, Any]] | None = None) -> Path:
    """A file of records, by default one, about the red picture red.png beside the file."""
    red_picture().save(folder / "red.png")
    dense = {
        "image": "red.png",
        "width": SIZE[0],
        "height": SIZE[1],
        "objects": [{"bbox_2d": list(BOX), "label": "red"}],
        "summary": "One red thing.",
    }
    path = folder / "boxes.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records or [dense]))
    return path


def build(folder: Path, source: Path, out: str = "out", **settings: Any) -> Path:
    """A build of one source with the tiny model; its folder."""
    values = {"seq_len": 2048, "workers": 0, "model": str(tiny_model_folder(folder)), **settings}
    build_shards(PrepConfig(sources=(str(source),), out=str(folder / out), **values))
    return folder / out


def samples(shards: Path, model: Path) -> list[tuple[str, list[Image.Image]]]:
    """Text and pictures of every sample, in the order of their rows and texts; an image's tokens are <IMAGE>."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    dataset = open_dataset(shards)
    reader, sidecar = PackReader([dataset]), read_sidecar(dataset)
    read = []
    for number in range(dataset.manifest.counts["packs"]):
        pack = reader.read(sidecar.place(number))
        starts = np.cumsum([0, *(media.bytes for media in pack.media)])
        for segment, (_, row) in enumerate(pack.samples.tolist()):
            first, last = pack.cu_seqlens[segment : segment + 2].tolist()
            text = tokenizer.decode(pack.input_ids[first:last].tolist(), skip_special_tokens=False)
            pictures = [
                Image.open(BytesIO(pack.media_bytes[start : start + media.bytes]))
                for media, start in zip(pack.media, starts, strict=False)
                if first <= media.start < last
            ]
            read.append((row, re.sub(r"(<\|image_pad\|>)+", "<IMAGE>", text), pictures))
    return [(text, pictures) for _, text, pictures in sorted(read, key=lambda entry: entry[:2])]


def boxes_of(text: str) -> list[list[int]]:
    """All lists of four numbers in a text."""
    return [json.loads(found) for found in re.findall(r"\[\d+, \d+, \d+, \d+\]", text)]
