"""What a pack costs in training: the units, and their size by a model's config.json alone, without torch.

A multiply-add is two operations; what is counted and what is not: see train/model/flops.py, which reads the same
figures off the layers of a model.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmms.configs.contract.families import family_facts
from lmms.configs.contract.model_files import read_config
from lmms.configs.errors import ConfigError, ModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """Operations of a training step, forward and backward, for each kind of thing that packs hold."""

    token: float
    target: float
    """A row of the LM head."""
    squared_length: float
    """Causal attention: by the sum of squared lengths of conversations."""
    patch: float
    """The vision tower's linear layers, and a patch's share of the mergers."""
    squared_image: float
    """Attention over images: by the sum of squared patches of an image (of a frame, where it moves)."""
    squared_window: float
    """Attention within windows: by the sum of squared patches of a window."""
    window: int
    """Patches along a window's side; 0 without windows."""
    sound_position: float = 0.0
    """The audio tower's linear layers and convolutions, and a position's share of its projection."""
    squared_sound: float = 0.0
    """Attention over chunks of sounds: by the sum of squared positions of a chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tower:
    """The weights of a vision tower, and how wide its attention is."""

    embedding: int
    """Weights of the layer that reads patches."""
    block: int
    """Weights of a block."""
    width: int
    blocks: int
    windowed: int
    """How many of the blocks attend within windows."""
    window: int
    mergers: int
    """Weights of all layers that read a square of merged patches."""
    merged: int
    """Patches of such a square."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _AudioTower:
    """The weights of an audio tower by position, and how wide its attention is."""

    embedding: int
    """Weights of the convolution that reads frames, for both frames of a position."""
    rest: int
    """Weights of the second convolution and of all blocks."""
    width: int
    blocks: int
    projection: int
    """Weights of the layer that reads two merged positions."""


def config_cost(config: Mapping[str, Any], frozen: Collection[str] = ()) -> ModelCost:
    """The cost of a model of this config.json of which all is trained but the parts `frozen`.

    Raises ModelError for a config.json that lacks a size.
    """
    read_tower, read_audio = _TOWERS[config["model_type"]], _AUDIO_TOWERS.get(config["model_type"])
    text = _text(config)
    width = _size(text, "num_attention_heads") * _head(text)
    layers = _size(text, "num_hidden_layers")
    trained = {part: part not in frozen for part in ("vision", "audio", "aligner", "llm")}
    sees, hears = read_tower is not None, read_audio is not None
    into_llm = (sees and trained["vision"]) or (hears and trained["audio"]) or ((sees or hears) and trained["aligner"])
    back = trained["llm"] or into_llm
    linear = 2 + 2 * trained["llm"] + 2 * back
    tower = read_tower(config.get("vision_config") or {}) if read_tower else None
    return ModelCost(
        token=linear * layers * _block(text, width),
        target=linear * _size(text, "vocab_size") * _size(text, "hidden_size"),
        squared_length=_attention(back) * layers * width / 2,
        **(_tower_cost(tower, trained) if tower else _NO_TOWER),
        **(_audio_cost(read_audio(config), trained) if read_audio else {}),
    )


def folder_cost(folder: Path, train: Mapping[str, str]) -> ModelCost:
    """The cost of the model of a folder, by its config.json. train: part -> frozen, for parts that are not trained.

    Raises ModelError for a config.json that lacks a size, ConfigError for a part that the model does not have.
    """
    config = read_config(folder)
    parts = family_facts(config.get("model_type"), folder / "config.json").parts
    unknown = [part for part in train if part not in parts]
    if unknown:
        raise ConfigError(f"cost_of names {unknown[0]!r}, which this model does not have; it has {', '.join(parts)}")
    return config_cost(config, [part for part, how in train.items() if how == "frozen"])


_NO_TOWER: Mapping[str, Any] = {"patch": 0, "squared_image": 0, "squared_window": 0, "window": 0}


def _tower_cost(tower: _Tower, trained: Mapping[str, bool]) -> dict[str, Any]:
    """The fields of ModelCost that are the vision tower's."""
    of_vision = 2 + 4 * trained["vision"]
    of_aligner = 2 + 2 * trained["aligner"] + 2 * (trained["aligner"] or trained["vision"])
    embedding = (2 + 2 * trained["vision"]) * tower.embedding
    pair = _attention(trained["vision"]) * tower.width
    return {
        "patch": embedding + of_vision * tower.blocks * tower.block + of_aligner * tower.mergers / tower.merged,
        "squared_image": pair * (tower.blocks - tower.windowed),
        "squared_window": pair * tower.windowed,
        "window": tower.window,
    }


def _audio_cost(tower: _AudioTower, trained: Mapping[str, bool]) -> dict[str, Any]:
    """The fields of ModelCost that are the audio tower's."""
    of_audio = 2 + 4 * trained["audio"]
    # A projection of one layer gets its input's gradient for the tower alone.
    of_projection = 2 + 2 * trained["aligner"] + 2 * trained["audio"]
    products = (2 + 2 * trained["audio"]) * tower.embedding + of_audio * tower.rest
    return {
        "sound_position": products + of_projection * tower.projection / 2,
        "squared_sound": _attention(trained["audio"]) * tower.width * tower.blocks,
    }


def _attention(passes_back: bool) -> int:
    """Operations for a pair of positions and a feature: two products forward, two backward for each."""
    return 4 + 8 * passes_back


def _block(text: Mapping[str, Any], width: int) -> int:
    """Weights of a block of the language model. width: of its attention."""
    hidden = _size(text, "hidden_size")
    keys = _size(text, "num_key_value_heads") * _head(text)
    return 2 * hidden * width + 2 * hidden * keys + 3 * hidden * _size(text, "intermediate_size")


def _head(text: Mapping[str, Any]) -> int:
    return int(text.get("head_dim") or _size(text, "hidden_size") // _size(text, "num_attention_heads"))


def _tower(
    vision: Mapping[str, Any], hidden: int, mlp: int, output: int, mergers: int = 1, windowed: int = 0
) -> _Tower:
    """A tower of this width, weights of a block's MLP, width behind the mergers, and number of mergers."""
    patch, merged = _size(vision, "patch_size"), _size(vision, "spatial_merge_size") ** 2
    read = int(vision.get("in_channels", 3)) * _size(vision, "temporal_patch_size") * patch**2
    square = merged * hidden
    return _Tower(
        embedding=read * hidden,
        block=4 * hidden**2 + mlp,
        width=hidden,
        blocks=_size(vision, "depth"),
        windowed=windowed,
        window=_size(vision, "window_size") // patch if "window_size" in vision else 0,
        mergers=mergers * square * (square + output),
        merged=merged,
    )


def _qwen2_vl(vision: Mapping[str, Any]) -> _Tower:
    hidden = _size(vision, "embed_dim")
    return _tower(vision, hidden, 2 * int(hidden * vision["mlp_ratio"]) * hidden, _size(vision, "hidden_size"))


def _qwen2_5_vl(vision: Mapping[str, Any]) -> _Tower:
    hidden = _size(vision, "hidden_size")
    mlp = 3 * hidden * _size(vision, "intermediate_size")
    whole = set(_list(vision, "fullatt_block_indexes")) & set(range(_size(vision, "depth")))
    windowed = _size(vision, "depth") - len(whole)
    return _tower(vision, hidden, mlp, _size(vision, "out_hidden_size"), windowed=windowed)


def _qwen3_vl(vision: Mapping[str, Any]) -> _Tower:
    hidden = _size(vision, "hidden_size")
    mlp = 2 * hidden * _size(vision, "intermediate_size")
    mergers = 1 + len(_list(vision, "deepstack_visual_indexes"))
    return _tower(vision, hidden, mlp, _size(vision, "out_hidden_size"), mergers)


_TOWERS: Mapping[str, Callable[[Mapping[str, Any]], _Tower] | None] = {
    "qwen2": None,
    "qwen3": None,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "qwen2_audio": None,
    "qwen2_5_omni": _qwen2_5_vl,
    "qwen2_5_omni_thinker": _qwen2_5_vl,
}
"""model_type of config.json -> its vision tower; None for a family without such a tower."""


def _audio_tower(config: Mapping[str, Any], output: int) -> _AudioTower:
    """The tower of `audio_config`, with a projection to this width."""
    audio = config.get("audio_config") or {}
    width, blocks = _size(audio, "d_model"), _size(audio, "encoder_layers")
    return _AudioTower(
        embedding=2 * _KERNEL * _size(audio, "num_mel_bins") * width,
        rest=_KERNEL * width**2 + blocks * (4 * width**2 + 2 * width * _size(audio, "encoder_ffn_dim")),
        width=width,
        blocks=blocks,
        projection=width * output,
    )


_KERNEL = 3
"""Frames that a convolution over sounds reads at a time."""

_AUDIO_TOWERS: Mapping[str, Callable[[Mapping[str, Any]], _AudioTower]] = {
    "qwen2_audio": lambda config: _audio_tower(config, _size(_text(config), "hidden_size")),
    "qwen2_5_omni": lambda config: _audio_tower(config, _size(config.get("audio_config") or {}, "output_dim")),
    "qwen2_5_omni_thinker": lambda config: _audio_tower(config, _size(config.get("audio_config") or {}, "output_dim")),
}
"""model_type of config.json -> its audio tower, for families that hear."""


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sizes of the language model; those that config.json leaves out are transformers' defaults."""
    text = config.get("text_config") or config
    return {**_LEFT_OUT, **text} if config["model_type"] == "qwen2_audio" else text


_LEFT_OUT = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32}
"""Sizes that the config.json of the published Qwen2-Audio has not: Qwen2Config of transformers."""


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ModelError(
            f"config.json has {name} {value!r}, expected a whole number above 0: a pack's cost follows from it;"
            " complete the file, or set plan: tight"
        )
    return value


def _list(config: Mapping[str, Any], name: str) -> list[int]:
    value = config.get(name)
    if not isinstance(value, list):
        raise ModelError(f"config.json has {name} {value!r}, expected a list; complete the file, or set plan: tight")
    return value
