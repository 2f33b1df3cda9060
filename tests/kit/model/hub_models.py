"""Tiny models in folders as the hub has them: config.json and weights in the form of the time of each family."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tests.kit.model.models import tiny_config, tiny_model

THETA = 500.0
"""Not what any version of transformers takes where a config is silent."""

_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
_OLD_NAMES = {
    "qwen2_vl": {"model.visual.": "visual.", "model.language_model.": "model."},
    "qwen2_5_vl": {"model.visual.": "visual.", "model.language_model.": "model."},
}
_TEXT_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "rms_norm_eps", "hidden_act", "initializer_range"),
)
_TOWER_KEYS = (
    *("depth", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size", "hidden_size", "embed_dim"),
    *("mlp_ratio", "out_hidden_size", "intermediate_size", "window_size", "fullatt_block_indexes", "hidden_act"),
    *("num_position_embeddings", "deepstack_visual_indexes"),
)
_MROPE: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"type": "mrope", "mrope_section": [2, 1, 1]},
    "qwen2_5_vl": {"type": "mrope", "mrope_section": [2, 1, 1]},
    "qwen3_vl": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
}


def hub_config(family: str, tied: bool) -> dict[str, Any]:
    """config.json of the tiny model of a family, as the hub has those of its large ones."""
    config = tiny_config(family, tied).to_dict()
    text = config.get("text_config", config)
    body: dict[str, Any] = {key: text[key] for key in _TEXT_KEYS}
    if family.startswith("qwen3"):
        body |= {"head_dim": text["head_dim"], "attention_bias": False}
    rope = {"rope_theta": THETA, "rope_scaling": _MROPE.get(family)}
    top = {"model_type": family, "architectures": [_CLASSES[family]], "tie_word_embeddings": tied}
    top |= {key: value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
    if family == "qwen3_vl":
        body |= {**rope, "dtype": "bfloat16", "model_type": "qwen3_vl_text", "tie_word_embeddings": tied}
        top |= {"text_config": body, "transformers_version": "4.57.0.dev0"}
    else:
        top |= {
            **body,
            **rope,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.41.2",
            "use_sliding_window": False,
        }
    if "vision_config" in config:
        tower = config["vision_config"]
        top["vision_config"] = {key: tower[key] for key in _TOWER_KEYS if tower.get(key) is not None}
    return top


def hub_name(family: str, name: str) -> str:
    """The name of a parameter in the safetensors files that the hub has of a family."""
    for new, old in _OLD_NAMES.get(family, {}).items():
        name = name.replace(new, old)
    return name


def write_hub_model(folder: Path, family: str, tied: bool, seed: int, files: int = 1) -> None:
    """Lay the config and random weights of such a model over a model folder, the weights in so many files."""
    (folder / "config.json").write_text(json.dumps(hub_config(family, tied), indent=2))
    model = tiny_model(family, seed, tied=tied).hf
    tensors = {hub_name(family, name): value.detach().clone() for name, value in model.named_parameters()}
    if files == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    places = {name: f"model-{i % files + 1:05}-of-{files:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
