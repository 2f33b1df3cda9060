"""The models of the bench, from their published sizes. Nothing is fetched: weights are drawn."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig, Qwen2_5_VLConfig, Qwen3VLConfig

IMAGE_TOKEN, VISION_START, VISION_END = 151655, 151652, 151653
_TEXT = {
    "vocab_size": 151936,
    "num_attention_heads": 16,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 151656,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}


def _qwen2_5_vl(text: Mapping[str, Any], tower: Mapping[str, Any], *, tied: bool) -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = {**_TEXT, "max_position_embeddings": 128000, "rope_parameters": rope, **text, "tie_word_embeddings": tied}
    return Qwen2_5_VLConfig(text_config=text, vision_config=dict(tower), **_TOKENS, tie_word_embeddings=tied)


def _qwen3_vl(text: Mapping[str, Any], tower: Mapping[str, Any], *, tied: bool) -> PretrainedConfig:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = {**_TEXT, "head_dim": 128, "num_key_value_heads": 8, "rope_parameters": rope, **text}
    text |= {"max_position_embeddings": 262144, "tie_word_embeddings": tied}
    tower = {"num_heads": 16, "patch_size": 16, "num_position_embeddings": 2304, **tower}
    return Qwen3VLConfig(text_config=text, vision_config=tower, **_TOKENS, tie_word_embeddings=tied)


MODELS: Mapping[str, PretrainedConfig] = {
    "Qwen2.5-VL-3B": _qwen2_5_vl(
        {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_key_value_heads": 2},
        {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        tied=True,
    ),
    "Qwen3-VL-2B": _qwen3_vl(
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28},
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        tied=True,
    ),
    "Qwen3-VL-8B": _qwen3_vl(
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
        {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 4096,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        tied=False,
    ),
}


def model_config(name: str, *, thin: bool) -> PretrainedConfig:
    """The config of a model. thin: two narrow layers of each kind and a small vocabulary, with the same head widths,
    windows and deep features."""
    config = copy.deepcopy(MODELS[name])
    if not thin:
        return config
    tower, body = config.vision_config, config.to_dict()
    body["text_config"] |= {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "vocab_size": 512,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    body["text_config"].pop("layer_types", None)
    head = tower.hidden_size // tower.num_heads
    body["vision_config"] |= {"depth": 2, "num_heads": 2, "hidden_size": 2 * head, "intermediate_size": 256}
    body["vision_config"]["out_hidden_size"] = 256
    for key, blocks in (("fullatt_block_indexes", [1]), ("deepstack_visual_indexes", [0])):
        if key in body["vision_config"]:
            body["vision_config"][key] = blocks
    body |= {"image_token_id": 511, "video_token_id": 510, "vision_start_token_id": 509, "vision_end_token_id": 508}
    return type(config).from_dict(body)
