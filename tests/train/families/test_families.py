"""Ids, grids, positions and tower inputs of real records are those of the Hugging Face processors and models."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageOps
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lmms.configs.contract.media.geometry import image_grid
from lmms.configs.contract.model_folder import ModelFolder, read_model_folder
from lmms.configs.contract.pack import Media, Pack
from lmms.train.batch.recipe import Recipe, make_recipe
from tests.kit.model.models import joined, manifest_of

MODELS = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
SETS = {"nlvr_statements": 40, "doc_photo_mix": 12, "emoji_icons": 60}
"""Set -> take every how many records."""


def real_conversations(shared: Path) -> Iterator[list[dict[str, Any]]]:
    """Messages with paths of images, of records with none, one and several of them."""
    for name, every in SETS.items():
        root = shared / "data" / "image" / name
        with pa.input_stream(str(root / "records.jsonl.zst")) as stream:
            lines = stream.read().splitlines()
        for line in lines[::every]:
            record = json.loads(line)
            images = iter(record.get("images", ()))
            messages = [
                {"role": message["role"], "content": [hf_part(part, images, root) for part in parts_of(message)]}
                for message in record["messages"]
            ]
            if not any("data:" in str(part.get("image")) for m in messages for part in m["content"]):
                yield messages
    yield [
        {"role": "user", "content": [{"type": "text", "text": "No picture here?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "None."}]},
    ]


def parts_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def hf_part(part: dict[str, Any], images: Iterator[str], root: Path) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    url = part.get("image_url")
    path = url["url"] if isinstance(url, dict) else url or part.get("image") or next(images)
    return {"type": "image", "image": path if path.startswith("data:") else str(root / path)}


def images_of(messages: list[dict[str, Any]]) -> list[Path]:
    return [Path(part["image"]) for m in messages for part in m["content"] if part["type"] == "image"]


def pack_of(ids: list[int], messages: list[dict[str, Any]], model: ModelFolder) -> Pack:
    """A pack of one conversation: spans from the ids, sizes and grids from the files."""
    assert model.vision is not None
    spans, at = [], 0
    for is_image, run in groupby(ids, lambda token: token == model.image_token_id):
        start, at = at, at + len(list(run))
        if is_image:
            spans.append((start, at))
    media, data = [], b""
    for (start, end), path in zip(spans, images_of(messages), strict=True):
        image = ImageOps.exif_transpose(Image.open(path))
        grid = image_grid(image.height, image.width, model.vision)
        media.append(Media("image", start, end, image.size, grid, path.stat().st_size))
        data += path.read_bytes()
    return Pack(
        input_ids=np.array(ids, np.int32),
        cu_seqlens=np.array([0, len(ids)], np.int32),
        targets=np.array([[len(ids) - 2, len(ids)]], np.int32),
        target_weights=np.ones(1),
        sample_weights=np.ones(1),
        samples=np.zeros((1, 2), np.int64),
        media=tuple(media),
        media_bytes=data,
    )


def real_recipe(model: ModelFolder, config: Any) -> Recipe:
    manifest = replace(
        manifest_of(model.family),
        seq_len=10**6,
        max_patches=10**7,
        image_token_id=model.image_token_id,
        video_token_id=model.video_token_id,
        vision=model.vision,
    )
    return make_recipe([manifest], config, "stop")


@pytest.mark.parametrize("name", MODELS)
def test_real_records_have_the_grids_and_positions_of_the_model(
    shared: Path, model_folders: dict[str, Path], name: str
) -> None:
    model = read_model_folder(model_folders[name])
    config = AutoConfig.from_pretrained(model.path)
    with torch.device("meta"):
        hf = AutoModelForImageTextToText.from_config(config)
    processor = AutoProcessor.from_pretrained(model.path)
    recipe = real_recipe(model, config)

    packs, positions, pixels, counts = [], [], [], set()
    for messages in real_conversations(shared):
        inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        grids = inputs.get("image_grid_thw")
        expected, _ = hf.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], grids)
        pack = pack_of(inputs["input_ids"][0].tolist(), messages, model)
        assert [list(m.grid_thw) for m in pack.media] == ([] if grids is None else grids.tolist())
        packs.append(pack)
        positions.append(expected)
        pixels.append(0 if grids is None else len(inputs["pixel_values"]))
        counts.add(len(pack.media))

    batch = joined(packs, recipe)
    assert counts >= {0, 1, 2, 3}
    assert torch.equal(batch.position_ids, torch.cat(positions, dim=2))
    assert batch.vision is not None
    assert len(batch.vision.patches) == sum(pixels)
    assert batch.vision.tower["cu_seqlens"].tolist() == [
        0,
        *np.cumsum([np.prod(m.grid_thw) for p in packs for m in p.media]),
    ]
