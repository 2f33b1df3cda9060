"""A file of packs for a model, made on the machine that trains on it: random text, and pictures of coloured fog."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import PretrainedConfig

from lmms.configs.contract.geometry import Vision, image_grid
from lmms.configs.contract.manifest import open_dataset
from lmms.configs.contract.model_folder import ModelFolder, read_model_folder
from lmms.configs.contract.pack import Media, Pack
from lmms.prep.writer import PackFacts, write_packs
from lmms.train.data.shards import PackReader, read_sidecar
from tools.gpu.layouts import TARGETS, Conversation, make_layout
from tools.gpu.models import model_config
from tools.gpu.sizes import Sizes

SHARES = {"text": 0.0, "vision": 0.6}
"""Pack file -> share of tokens that are images'."""
SEED = 0
_FOG = 24
"""Pixels between the random colours of a picture: it compresses like a photograph."""


def make_packs(model: str, sizes: Sizes, folder: Path) -> Path:
    """folder/model, a model folder without weights, and folder/text, folder/vision, the files of its packs."""
    made = _write_model(folder / "model", model_config(model, thin=sizes.thin), sizes)
    for name, share in SHARES.items():
        layout = make_layout(sizes, share, SEED)
        config = model_config(model, thin=sizes.thin)
        packs = [make_pack(layout, config, made, np.random.default_rng([SEED, i])) for i in range(sizes.packs)]
        facts = PackFacts(
            model=made,
            model_name=made.path.name,
            seq_len=sizes.seq_len,
            max_patches=max(1, *(pack.patches for pack in packs)),
            sources=["drawn"],
            packing="drawn by a seed",
            settings={"seed": SEED},
        )
        write_packs(folder / name, packs, facts)
    return folder


def make_pack(
    layout: Sequence[Conversation], config: PretrainedConfig, model: ModelFolder, rng: np.random.Generator
) -> Pack:
    """A pack of these conversations in random order; every target weighs 1."""
    vision = model.vision
    assert vision is not None
    first_special = min(config.vision_start_token_id, config.vision_end_token_id, config.image_token_id)
    ids, media, data, targets, ends = list[npt.NDArray[np.int64]](), list[Media](), list[bytes](), [], [0]
    for conversation in (layout[i] for i in rng.permutation(len(layout))):
        at = ends[-1]
        for rows, columns in conversation.images:
            size = (columns * vision.factor, rows * vision.factor)
            encoded = _picture(*size, rng)
            end = at + 1 + rows * columns
            grid = image_grid(size[1], size[0], vision)
            media.append(Media("image", at + 1, end, size, grid, len(encoded)))
            data.append(encoded)
            placeholders = np.full(rows * columns, config.image_token_id)
            ids += [np.array([config.vision_start_token_id]), placeholders, np.array([config.vision_end_token_id])]
            at = end + 1
        ids.append(rng.integers(0, first_special - 3, conversation.text))
        ends.append(at + conversation.text)
        targets.append((ends[-1] - int(TARGETS * conversation.text), ends[-1]))
    return Pack(
        input_ids=np.concatenate(ids).astype(np.int32),
        cu_seqlens=np.array(ends, np.int32),
        targets=np.array(targets, np.int32),
        target_weights=np.ones(len(targets)),
        sample_weights=np.ones(len(layout)),
        samples=np.stack([np.zeros(len(layout)), np.arange(len(layout))], axis=1).astype(np.int64),
        media=tuple(media),
        media_bytes=b"".join(data),
    )


def _picture(width: int, height: int, rng: np.random.Generator) -> bytes:
    small = rng.integers(0, 256, (height // _FOG + 2, width // _FOG + 2, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def _write_model(folder: Path, config: PretrainedConfig, sizes: Sizes) -> ModelFolder:
    """A folder as lmms wants it, with a tokenizer that knows the image token and no more."""
    tower = config.vision_config
    factor = tower.patch_size * tower.spatial_merge_size
    vision = Vision(
        patch_size=tower.patch_size,
        merge_size=tower.spatial_merge_size,
        temporal_patch_size=tower.temporal_patch_size,
        min_pixels=factor**2,
        max_pixels=2 * sizes.image[1] * factor**2,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )
    config.save_pretrained(folder)
    added = [{"id": config.image_token_id, "content": "<|image_pad|>"}]
    tokenizer = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}), encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(asdict(vision)), encoding="utf-8")
    return read_model_folder(folder)


def pack_file(folder: str | Path, name: str) -> list[Pack]:
    """The packs of a file that make_packs wrote."""
    dataset = open_dataset(Path(folder) / name)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    packs = [reader.read(sidecar.place(i)) for i in range(len(sidecar))]
    reader.close()
    return packs
