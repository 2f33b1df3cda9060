"""The models of the bench, from their published sizes, and the sizes of all measurements. Nothing is fetched."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PretrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes and types of the measurements of a bench."""

    device: Literal["cuda", "cpu"]
    precision: Literal["bf16", "fp32"]
    thin: bool
    """Two narrow layers of each kind instead of the whole model."""
    seq_len: int
    """Tokens of a pack; every pack is full."""
    packs: int
    """Packs of a file. A step is one pass over all packs, one pack in a forward pass: every step is the same work."""
    conversation: tuple[int, int, int]
    """Tokens of a conversation: shortest, median, longest."""
    image: tuple[int, int]
    """Tokens of an image: fewest, most."""
    warm_steps: int
    timed_steps: int
    """Most steps that are timed; fewer if the time is short."""
    workers: int
    """Loader processes."""
    repeats: int
    """Calls of each operation that is timed alone."""
    backend: Literal["inductor", "aot_eager"]
    """Compiler of the blocks; aot_eager makes graphs and writes no kernels."""


FULL = Sizes(
    device="cuda",
    precision="bf16",
    thin=False,
    seq_len=16384,
    packs=2,
    conversation=(200, 1600, 4096),
    image=(64, 1280),
    warm_steps=2,
    timed_steps=4,
    workers=6,
    repeats=20,
    backend="inductor",
)
MINI = Sizes(
    device="cpu",
    precision="fp32",
    thin=True,
    seq_len=256,
    packs=2,
    conversation=(16, 60, 160),
    image=(4, 25),
    warm_steps=1,
    timed_steps=2,
    workers=0,
    repeats=2,
    backend="aot_eager",
)
MINI_ON_GPU = replace(MINI, device="cuda", precision="bf16", workers=2, backend="inductor")

FIRST, SECOND, LARGE = "Qwen2.5-VL-3B", "Qwen3-VL-2B", "Qwen3-VL-8B"
_TEXT: Mapping[str, Any] = {"vocab_size": 151936, "rms_norm_eps": 1e-6, "bos_token_id": 151643, "eos_token_id": 151645}
_IDS = dict(zip(("vision_start", "vision_end", "image", "video"), (151652, 151653, 151655, 151656), strict=True))
_TOKENS = {f"{name}_token_id": token for name, token in _IDS.items()}


def _qwen2_5_vl() -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text: dict[str, Any] = {**_TEXT, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
    text |= {"num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 128000}
    text |= {"rope_parameters": rope, "tie_word_embeddings": True}
    tower: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    tower |= {"out_hidden_size": 2048, "patch_size": 14, "window_size": 112}
    tower |= {"fullatt_block_indexes": [7, 15, 23, 31]}
    return Qwen2_5_VLConfig(text_config=text, vision_config=tower, **_TOKENS, tie_word_embeddings=True)


def _qwen3_vl(
    text: tuple[int, int, int, int], tower: tuple[int, int, int], deep: list[int], *, tied: bool
) -> PretrainedConfig:
    """text: width, inner width, layers, heads. tower: depth, width, inner width. deep: the tower's deep features."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text_config: dict[str, Any] = {**_TEXT, **dict(zip(names, text, strict=True)), "head_dim": 128}
    text_config |= {"num_key_value_heads": 8, "rope_parameters": rope}
    text_config |= {"max_position_embeddings": 262144, "tie_word_embeddings": tied}
    vision = dict(zip(("depth", "hidden_size", "intermediate_size"), tower, strict=True))
    vision |= {"num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304, "out_hidden_size": text[0]}
    vision_config = {**vision, "deepstack_visual_indexes": deep}
    return Qwen3VLConfig(text_config=text_config, vision_config=vision_config, **_TOKENS, tie_word_embeddings=tied)


MODELS: Mapping[str, PretrainedConfig] = {
    FIRST: _qwen2_5_vl(),
    SECOND: _qwen3_vl((2048, 6144, 28, 16), (24, 1024, 4096), [5, 11, 17], tied=True),
    LARGE: _qwen3_vl((4096, 12288, 36, 32), (27, 1152, 4304), [8, 16, 24], tied=False),
}


def model_config(name: str, *, thin: bool) -> PretrainedConfig:
    """The config of a model. thin: two narrow layers of each kind and a small vocabulary, with the same head widths,
    windows and deep features."""
    config = copy.deepcopy(MODELS[name])
    if not thin:
        return config
    tower, body = config.vision_config, config.to_dict()
    text = body["text_config"]
    text |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 512}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": None, "eos_token_id": None}
    text.pop("layer_types", None)
    head = tower.hidden_size // tower.num_heads
    vision = body["vision_config"]
    vision |= {"depth": 2, "num_heads": 2, "hidden_size": 2 * head, "intermediate_size": 256, "out_hidden_size": 256}
    for key, blocks in (("fullatt_block_indexes", [1]), ("deepstack_visual_indexes", [0])):
        if key in vision:
            vision[key] = blocks
    body |= {"image_token_id": 511, "video_token_id": 510, "vision_start_token_id": 509, "vision_end_token_id": 508}
    return type(config).from_dict(body)
