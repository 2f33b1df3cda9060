"""A file of packs for a model, made on the machine of the training: random text, and pictures of coloured fog.

All packs of a file hold conversations of the same lengths with images of the same grids, in a different order, so
compiled blocks meet one shape and every step is the same work. A seed decides everything.
"""

import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from transformers import PretrainedConfig

from lmms.configs.contract.manifest import open_dataset
from lmms.configs.contract.media.geometry import Vision, image_grid
from lmms.configs.contract.model_folder import ModelFolder, read_model_folder
from lmms.configs.contract.pack import Media, Pack
from lmms.prep.writer import PackFacts, write_packs
from lmms.train.data.shards import PackReader, read_sidecar
from tools.gpu.pieces.models import Sizes, model_config

SHARES = {"text": 0.0, "vision": 0.6}
"""Pack file -> share of image tokens."""
TARGETS = 0.5
"""Share of a conversation's text that is predicted, at its end."""
_SEED = 0
_FOG = 24
"""Pixels between the random colours of a picture, which then compresses like a photograph."""
_SPREAD, _MOST_IMAGES, _LEAST_TEXT = 0.7, 4, 8


@dataclass(frozen=True, slots=True)
class Conversation:
    """Images (rows and columns, in tokens), each between its two marks, then text."""

    images: tuple[tuple[int, int], ...]
    text: int
    """Tokens of the text."""

    @property
    def vision(self) -> int:
        """Tokens of its images."""
        return sum(rows * columns for rows, columns in self.images)

    @property
    def tokens(self) -> int:
        """All tokens of the conversation."""
        return self.vision + 2 * len(self.images) + self.text


def packs_piece(model: str, folder: str, sizes: Sizes) -> Iterator[dict[str, float]]:
    """Make the files of a model, and measure the seconds."""
    began = time.monotonic()
    make_packs(model, sizes, Path(folder))
    yield {"seconds": time.monotonic() - began}


def make_packs(model: str, sizes: Sizes, folder: Path) -> Path:
    """folder/model, a model folder without weights, and folder/text, folder/vision, the files of its packs."""
    config = model_config(model, thin=sizes.thin)
    model_folder = _write_model(folder / "model", config, sizes)
    for name, share in SHARES.items():
        layout = make_layout(sizes, share, _SEED)
        rngs = [np.random.default_rng([_SEED, i]) for i in range(sizes.packs)]
        packs = [_make_pack(layout, config, model_folder, rng) for rng in rngs]
        facts = PackFacts(model=model_folder, seq_len=sizes.seq_len, max_patches=max(pack.patches for pack in packs))
        write_packs(folder / name, packs, facts)
    return folder


def pack_file(folder: str | Path, name: str) -> list[Pack]:
    """The packs of a file that make_packs wrote."""
    dataset = open_dataset(Path(folder) / name)
    sidecar, reader = read_sidecar(dataset), PackReader([dataset])
    packs = [reader.read(sidecar.place(i)) for i in range(len(sidecar))]
    reader.close()
    return packs


def make_layout(sizes: Sizes, vision_share: float, seed: int) -> list[Conversation]:
    """Conversations of exactly seq_len tokens, with this share of image tokens (to within a row of an image).

    Without images the lengths are log-normal between the bounds of `sizes`. With images, a conversation has one to four
    images, as far as its length allows, and a share of the rest of the pack as text.
    """
    rng = np.random.default_rng([seed, round(1000 * vision_share)])
    if not vision_share:
        return [Conversation((), length) for length in _lengths(sizes, rng)]
    groups = _grouped(_grids(sizes, round(vision_share * sizes.seq_len), rng), sizes, rng)
    shown = sum(Conversation(images, 0).tokens for images in groups)
    spare = sizes.seq_len - shown - _LEAST_TEXT * len(groups)
    shares = rng.lognormal(0, _SPREAD, len(groups))
    texts = _LEAST_TEXT + np.floor(spare * shares / shares.sum()).astype(int)
    texts[0] += sizes.seq_len - shown - int(texts.sum())
    return [Conversation(images, int(text)) for images, text in zip(groups, texts, strict=True)]


def _lengths(sizes: Sizes, rng: np.random.Generator) -> list[int]:
    shortest, median, longest = sizes.conversation
    lengths = list[int]()
    while (left := sizes.seq_len - sum(lengths)) > longest:
        drawn = int(np.clip(rng.lognormal(np.log(median), _SPREAD), shortest, longest))
        lengths.append(min(drawn, left - shortest))
    return [*lengths, left]


def _grids(sizes: Sizes, tokens: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    fewest, most = sizes.image
    grids = list[tuple[int, int]]()
    while (left := tokens - sum(rows * columns for rows, columns in grids)) >= fewest:
        area = np.exp(rng.uniform(np.log(fewest), np.log(most)))
        rows = max(int(np.sqrt(area * np.exp(rng.uniform(-0.7, 0.7)))), 2)
        columns = max(int(area / rows), 2)
        grids.append((rows, min(columns, max(left // rows, 1))))
    return grids


def _grouped(grids: list[tuple[int, int]], sizes: Sizes, rng: np.random.Generator) -> list[tuple[tuple[int, int], ...]]:
    groups = list[tuple[tuple[int, int], ...]]()
    # Room is left for text: about as much as the images of an average conversation take.
    room = sizes.conversation[2] * 0.6
    wanted = 0
    for grid in grids:
        if wanted and Conversation((*groups[-1], grid), 0).tokens <= room:
            groups[-1] = (*groups[-1], grid)
            wanted -= 1
        else:
            groups.append((grid,))
            wanted = int(rng.integers(0, _MOST_IMAGES))
    return groups


def _make_pack(
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
            width, height = columns * vision.factor, rows * vision.factor
            picture = _picture(width, height, rng)
            end = at + 1 + rows * columns
            media.append(Media("image", at + 1, end, (width, height), image_grid(height, width, vision), len(picture)))
            data.append(picture)
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
    """A model folder for lmms, with a tokenizer that knows the image token only."""
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
