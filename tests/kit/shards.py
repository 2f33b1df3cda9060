"""Shard folders made straight from the contract, for tests of the training side alone."""

import io
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from lmms.configs.contract.media.geometry import Vision, grid_patches, grid_tokens, image_grid
from lmms.configs.contract.model_folder import ModelFolder
from lmms.configs.contract.pack import Media, Pack
from lmms.prep import writer
from lmms.prep.writer import PackFacts
from tests.kit.model.clips import clip_rows, noise_clip
from tests.kit.model.sounds import noise_sound

PICTURE_VISION = Vision(
    patch_size=14,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=28 * 28,
    max_pixels=280 * 280,
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.5, 0.5, 0.5),
)
PICTURE_MODEL = ModelFolder(
    path=Path("model"),
    family="qwen2_5_vl",
    tokenizer_json=Path("model/tokenizer.json"),
    chat_template="",
    special_tokens={},
    vision=PICTURE_VISION,
    image_token_id=99,
    tokenizer_fingerprint="test",
)


def make_pack(
    rng: np.random.Generator,
    lengths: Sequence[int],
    vocab: int,
    images: int = 0,
    model: ModelFolder | None = None,
    frames: int = 0,
    sounds: Sequence[int] = (),
) -> Pack:
    """Conversations of random tokens below `vocab`, the second half of each predicted; the first one shows `images`
    small pictures of noise, a video of so many frames and sounds of so many samples (then `model` gives tokens)."""
    media, data, shown = [], b"", [np.zeros(0, np.int32)]
    position = 1
    for _ in range(images):
        assert model is not None
        assert model.vision is not None
        entry, encoded = _picture(rng, model.vision, position)
        media.append(entry)
        data += encoded
        shown += [np.full(entry.end - entry.start, model.image_token_id, np.int32), _tokens(rng, 1, vocab)]
        position = entry.end + 1
    if frames:
        assert model is not None
        assert model.vision is not None
        clip = noise_clip(int(rng.integers(1000)), frames, 2 * model.vision.factor, model.vision.factor)
        for entry, encoded in clip_rows(clip, model.vision):
            media.append(replace(entry, start=position, end=position + entry.end))
            data += encoded
            shown.append(np.full(entry.end, model.video_token_id, np.int32))
            position += entry.end
        shown.append(_tokens(rng, 1, vocab))
        position += 1
    for samples in sounds:
        assert model is not None
        assert model.audio is not None
        noise = noise_sound(int(rng.integers(1000)), samples, model.audio)
        entry = noise.media
        media.append(replace(entry, start=position, end=position + entry.end))
        data += noise.data
        shown += [np.full(entry.end, model.audio_token_id, np.int32), _tokens(rng, 1, vocab)]
        position += entry.end + 1
    placeholders = np.concatenate(shown)
    lengths = [lengths[0] + len(placeholders), *lengths[1:]]
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    input_ids = _tokens(rng, int(cu_seqlens[-1]), vocab)
    input_ids[1 : 1 + len(placeholders)] = placeholders
    starts = [max(start + (end - start) // 2, 1) for start, end in pairwise(cu_seqlens.tolist())]
    starts[0] = max(starts[0], position)
    return Pack(
        input_ids=input_ids,
        cu_seqlens=cu_seqlens,
        targets=np.stack([starts, cu_seqlens[1:]], axis=1).astype(np.int32),
        target_weights=rng.choice(np.array([0.5, 1.0, 2.0]), len(lengths)),
        sample_weights=np.ones(len(lengths)),
        samples=np.stack([np.zeros(len(lengths)), rng.integers(0, 1000, len(lengths))], axis=1).astype(np.int64),
        media=tuple(media),
        media_bytes=data,
    )


def picture_packs() -> list[Pack]:
    """Seven packs of one to three conversations; every second one has pictures."""
    rng = np.random.default_rng(0)
    lengths = [rng.integers(4, 30, 1 + i % 3).tolist() for i in range(7)]
    return [make_pack(rng, length, 99, images=2 * (i % 2), model=PICTURE_MODEL) for i, length in enumerate(lengths)]


def write_shards(
    folder: Path, packs: Sequence[Pack], model: ModelFolder, seq_len: int, sources: Sequence[str] = ("made.jsonl",)
) -> Path:
    """A complete shard folder of these packs of these sources, two shards where there are two packs or more."""
    facts = PackFacts(
        model=model,
        seq_len=seq_len,
        max_patches=max([1, *(grid_patches(m.grid_thw) for p in packs for m in p.media)]) * 8
        + max(pack.sound_positions for pack in packs),
        sources=sources,
        packing="as given",
        renderer="test",
        records="test",
    )
    half = max(len(packs) // 2, 1)
    writer.write_shards(folder, [part for part in (packs[:half], packs[half:]) if part], facts)
    return folder


def _tokens(rng: np.random.Generator, count: int, vocab: int) -> np.ndarray:
    return rng.integers(0, vocab, count).astype(np.int32)


def _picture(rng: np.random.Generator, vision: Vision, start: int) -> tuple[Media, bytes]:
    width, height = (int(side) * vision.factor for side in rng.integers(2, 4, 2))
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    grid = image_grid(height, width, vision)
    end = start + grid_tokens(grid, vision.merge_size)
    data = file.getvalue()
    return Media("image", start, end, (width, height), grid, len(data)), data
