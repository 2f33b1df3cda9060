"""Tiny models of every family, and packs for them with real encoded images."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from transformers import (
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2AudioConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
)

from lmms.configs.by_part import Part
from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.families import trained_as
from lmms.configs.contract.manifest import Manifest
from lmms.configs.contract.media.geometry import Vision, grid_tokens, image_grid
from lmms.configs.contract.pack import CONTRACT_VERSION, Media, Pack
from lmms.configs.settings.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.settings.train import EVERYTHING, How
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.recipe import Recipe, SetRecipe
from lmms.train.data.shards import Place
from lmms.train.families import family_of
from lmms.train.model.build import build_model, init_random, materialize
from lmms.train.model.flops import model_cost
from lmms.train.model.forward import TrainModel
from lmms.train.model.lora import add_lora, init_lora
from lmms.train.optim.groups import set_trained
from tests.kit.model.clips import Clip, clip_rows
from tests.kit.model.sounds import FILLED_AUDIO, TINY_AUDIO, Noise

FAMILIES = ("qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni_thinker", "qwen2_audio")
VISION_FAMILIES = FAMILIES[2:-1]
SOUND_FAMILIES = FAMILIES[-2:]
AUDIOS = {"qwen2_5_omni_thinker": TINY_AUDIO, "qwen2_audio": FILLED_AUDIO}

VOCAB, SOUND_VOCAB = 64, 72
IMAGE_TOKEN, VISION_START, VISION_END, VIDEO_TOKEN = 63, 62, 61, 60
AUDIO_TOKEN, AUDIO_START, AUDIO_END = 64, 65, 66
FIRST_SPECIAL = 60
"""Token ids below it are text."""

_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
}
_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
_TOWER = {"depth": 4, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def tiny_config(family: str, tied: bool = False) -> PretrainedConfig:
    """A config of a few thousand parameters with every feature of its family: grouped heads, windows, deep features."""
    family = trained_as(family)
    text = {**_TEXT, "tie_word_embeddings": tied}
    mrope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    top = {**_TOKENS, "tie_word_embeddings": tied}
    if family in SOUND_FAMILIES:
        return _hearing_config(family, {**text, "vocab_size": SOUND_VOCAB}, mrope, tied)
    if family == "qwen2":
        return Qwen2Config(**text)
    if family == "qwen3":
        return Qwen3Config(**text, head_dim=16)
    if family == "qwen2_vl":
        tower = {**_TOWER, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        return Qwen2VLConfig(text_config={**text, "rope_parameters": mrope}, vision_config=tower, **top)
    if family == "qwen2_5_vl":
        tower = {**_TOWER, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
        tower |= {"window_size": 16, "fullatt_block_indexes": [1, 3]}
        return Qwen2_5_VLConfig(text_config={**text, "rope_parameters": mrope}, vision_config=tower, **top)
    tower = {**_TOWER, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24}
    tower |= {"num_position_embeddings": 36, "deepstack_visual_indexes": [0, 2]}
    interleaved = {**mrope, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text_config = {**text, "head_dim": 16, "rope_parameters": interleaved}
    return Qwen3VLConfig(text_config=text_config, vision_config=tower, **top)


def _hearing_config(family: str, text: dict[str, object], mrope: dict[str, object], tied: bool) -> PretrainedConfig:
    audio = {"num_mel_bins": 8, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "d_model": 16}
    if family == "qwen2_audio":
        audio |= {"max_source_positions": 50, "initializer_range": 0.2}
        text |= {"model_type": "qwen2"}
        return Qwen2AudioConfig(
            text_config=text, audio_config=audio, audio_token_index=AUDIO_TOKEN, tie_word_embeddings=tied
        )
    tower = {**_TOWER, "hidden_size": 16, "out_hidden_size": 32, "intermediate_size": 24, "initializer_range": 0.2}
    return Qwen2_5OmniThinkerConfig(
        text_config={**text, "rope_parameters": mrope},
        vision_config=tower | {"window_size": 16, "fullatt_block_indexes": [1, 3]},
        audio_config=audio | {"n_window": 4, "max_source_positions": 20, "output_dim": 32, "initializer_range": 0.2},
        image_token_index=IMAGE_TOKEN,
        video_token_index=VIDEO_TOKEN,
        audio_token_index=AUDIO_TOKEN,
        audio_start_token_id=AUDIO_START,
        audio_end_token_id=AUDIO_END,
        vision_start_token_id=VISION_START,
        tie_word_embeddings=tied,
    )


TINY_VISION = Vision(
    patch_size=4,
    merge_size=2,
    temporal_patch_size=2,
    min_pixels=8 * 8,
    max_pixels=64 * 64,
    image_mean=(0.5, 0.4, 0.3),
    image_std=(0.2, 0.3, 0.4),
)


def part_of(family: str, name: str) -> Part:
    """The part of a parameter, by its name in a checkpoint, in TrainModel or in the transformers model."""
    return family_of(family).part_of(name.removeprefix("model.hf.").removeprefix("hf.")).name


def tiny_cost(family: str, train: Mapping[str, How] = EVERYTHING, lora: LoraConfig = DEFAULT_LORA) -> ModelCost:
    """What the tiny model costs of which this is trained."""
    return model_cost(build_model(tiny_config(family), "none"), train, lora)


def tiny_recipe(family: str, on_bad_media: str = "stop", by: str = "set", sets: int = 1) -> Recipe:
    """The recipe that make_recipe would give for sets of shards of the tiny config, two sources each."""
    has_vision = family in VISION_FAMILIES
    config, images = tiny_config(family), family_of(family).images
    one = SetRecipe(
        vision=TINY_VISION if has_vision else None,
        limits=PackLimits(
            seq_len=4096,
            max_patches=4096,
            image_token_id=IMAGE_TOKEN if has_vision else None,
            merge_size=2,
            video_token_id=VIDEO_TOKEN if has_vision else None,
            audio_token_id=AUDIO_TOKEN if family in AUDIOS else None,
            audio=AUDIOS.get(family),
        ),
        sources=("first.jsonl", "second.jsonl"),
    )
    return Recipe(
        family=family,
        sets=(one,) * sets,
        tower=images.tower(config) if images else None,
        vocab_size=config.get_text_config().vocab_size,
        on_bad_media=on_bad_media,
        by=by,
    )


def tiny_model(
    family: str,
    seed: int = 0,
    recompute: str = "none",
    tied: bool = False,
    train: Mapping[str, How] = EVERYTHING,
    lora: LoraConfig = DEFAULT_LORA,
) -> TrainModel:
    """A random tiny model on the CPU of which this is trained, LoRA at its start."""
    model = build_model(tiny_config(family, tied), recompute)
    add_lora(model, train, lora)
    set_trained(model, train, lora)
    materialize(model, torch.device("cpu"))
    init_random(model, seed)
    init_lora(model, seed)
    return model


Shown = bytes | Clip | Noise
"""An encoded image, a video, or a sound."""


@dataclass(frozen=True)
class Talk:
    """A conversation for `make_pack`: ids, target spans with weights, and its images, videos and sounds in order."""

    ids: tuple[int, ...]
    targets: tuple[tuple[int, int, float], ...]
    images: tuple[Shown, ...] = ()
    sample: tuple[int, int] = (0, 0)


def frozen(*parts: Part) -> dict[str, How]:
    """The setting `train` of a run that freezes these parts."""
    return {"default": "full", **dict.fromkeys(parts, "frozen")}


def picture(seed: int, width: int = 24, height: int = 16) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def talk(seed: int, length: int, images: Sequence[Shown] = (), row: int = 0) -> Talk:
    """A random conversation: media early on for each of `images`, two target spans of different weight."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, FIRST_SPECIAL, 2).tolist()
    for shown in images:
        placeholders = []
        if isinstance(shown, Noise):
            placeholders = [AUDIO_TOKEN] * shown.media.end
            ids += [AUDIO_START, *placeholders, AUDIO_END, int(rng.integers(0, FIRST_SPECIAL))]
            continue
        for media, _ in _media_of(shown):
            row_ids = [_PLACEHOLDERS[media.kind]] * (media.end - media.start)
            time = [int(rng.integers(0, FIRST_SPECIAL)), VISION_START, *row_ids, VISION_END]
            placeholders += time if isinstance(shown, Clip) and shown.has_times else row_ids
        ids += [VISION_START, *placeholders, VISION_END, int(rng.integers(0, FIRST_SPECIAL))]
    start = len(ids)
    ids += rng.integers(0, FIRST_SPECIAL, length).tolist()
    middle = start + length // 2
    spans = ((start + 1, middle, 1.0), (middle + 1, len(ids), 0.5))
    return Talk(tuple(ids), spans, tuple(images), (seed % 2, row))


_PLACEHOLDERS = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN, "audio": AUDIO_TOKEN}


def _media_of(image: Shown) -> Iterator[tuple[Media, bytes]]:
    """The entry of an image or sound, or those of a video's rows, at place 0, with their bytes."""
    if isinstance(image, Noise):
        yield image.media, image.data
    elif isinstance(image, Clip):
        yield from clip_rows(image, TINY_VISION)
    else:
        width, height = Image.open(io.BytesIO(image)).size
        grid = image_grid(height, width, TINY_VISION)
        tokens = grid_tokens(grid, TINY_VISION.merge_size)
        yield Media("image", 0, tokens, (width, height), grid, len(image)), image


def make_pack(talks: Sequence[Talk]) -> Pack:
    """The pack of these conversations, whose images are of any size: the media follow from the bytes."""
    starts = np.concatenate([[0], np.cumsum([len(t.ids) for t in talks])]).astype(np.int32)
    media, data = [], b""
    for t, start in zip(talks, starts.tolist(), strict=False):
        at = 0
        for m, shown in (each for image in t.images for each in _media_of(image)):
            at = t.ids.index(_PLACEHOLDERS[m.kind], at)
            end = at + m.end - m.start
            media.append(replace(m, start=start + at, end=start + end))
            data += shown
            at = end
    spans = [
        (start + a, start + b, w) for t, start in zip(talks, starts.tolist(), strict=False) for a, b, w in t.targets
    ]
    return Pack(
        input_ids=np.array([i for t in talks for i in t.ids], np.int32),
        cu_seqlens=starts,
        targets=np.array([(a, b) for a, b, _ in spans], np.int32),
        target_weights=np.array([w for _, _, w in spans], np.float64),
        sample_weights=np.ones(len(talks)),
        samples=np.array([t.sample for t in talks], np.int64),
        media=tuple(media),
        media_bytes=data,
    )


def places(*packs: int, of_set: int = 0) -> list[Place]:
    """Places of packs of these numbers that are in no file; of each, the hash is its number."""
    return [Place(set=of_set, pack=pack, shard=0, offset=0, bytes=0, xxh3=pack) for pack in packs]


def joined(packs: Sequence[Pack], recipe: Recipe) -> Batch:
    """The batch of packs that are in no file."""
    return make_batch(packs, recipe, places(*range(len(packs))))


def manifest_of(family: str) -> Manifest:
    """The manifest of shards for a tiny model."""
    has_vision = family in VISION_FAMILIES
    return Manifest(
        contract=CONTRACT_VERSION,
        family=family,
        model="tiny",
        seq_len=4096,
        max_patches=4096,
        image_token_id=IMAGE_TOKEN if has_vision else None,
        video_token_id=VIDEO_TOKEN if has_vision else None,
        audio_token_id=AUDIO_TOKEN if family in AUDIOS else None,
        audio=AUDIOS.get(family),
        vision=TINY_VISION if has_vision else None,
        packing="none",
        fingerprints={},
        counts={},
        rejects={},
        notes={},
        sources=({"name": "first.jsonl"}, {"name": "second.jsonl"}),
        settings={},
        files={},
    )
