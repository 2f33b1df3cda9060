"""The attention layers of a model on a pack: what attends to what, and how often in a forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from lmms.configs.contract.pack import Pack
from lmms.train.families import images_of
from lmms.train.families.family import TowerInputs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """One kind of attention layer."""

    name: str
    """language, images or windows."""
    heads: int
    key_heads: int
    width: int
    causal: bool
    cu_seqlens: Tensor
    """int32, of the documents behind the dense windows."""
    dense_windows: int
    max_length: int
    count: int
    """Layers of this kind."""

    @property
    def positions(self) -> int:
        """Rows of query, key and value."""
        return self.dense_windows * self.max_length + int(self.cu_seqlens[-1])

    @property
    def flops(self) -> float:
        """Forward, causal at half; backward has twice as many."""
        squares = self.dense_windows * self.max_length**2 + int((self.cu_seqlens.diff().long() ** 2).sum())
        return 4.0 * self.heads * self.width * squares / (2 if self.causal else 1)


def attention_layers(hf_config: PretrainedConfig, pack: Pack) -> list[Layer]:
    """The kinds that a model has, with the lengths of this pack."""
    text = hf_config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    language = Layer(
        name="language",
        heads=text.num_attention_heads,
        key_heads=text.num_key_value_heads,
        width=width,
        causal=True,
        cu_seqlens=torch.from_numpy(pack.cu_seqlens.copy()),
        dense_windows=0,
        max_length=int(pack.lengths.max()),
        count=text.num_hidden_layers,
    )
    return [language, *(_tower_layers(hf_config, pack) if pack.media else ())]


def _tower_layers(hf_config: PretrainedConfig, pack: Pack) -> list[Layer]:
    config, images = hf_config.vision_config, images_of(hf_config.model_type)
    tower = images.tower(hf_config)
    inputs = images.inputs(torch.tensor([m.grid_thw for m in pack.media]), tower)
    whole = config.depth - len(tower.windowed)
    layers = [_tower_layer("images", config, inputs, "cu_seqlens", "max_seqlen", 0, whole)]
    if "dense_windows" in inputs:
        dense = inputs["dense_windows"]
        assert isinstance(dense, int)
        names = ("cu_window_seqlens", "max_window_seqlen")
        layers.append(_tower_layer("windows", config, inputs, *names, dense, config.depth - whole))
    return layers


def _tower_layer(
    name: str, config: PretrainedConfig, inputs: TowerInputs, bounds: str, longest: str, dense: int, count: int
) -> Layer:
    cu_seqlens, max_length = inputs[bounds], inputs[longest]
    assert isinstance(cu_seqlens, Tensor)
    assert isinstance(max_length, int)
    return Layer(
        name=name,
        heads=config.num_heads,
        key_heads=config.num_heads,
        width=config.hidden_size // config.num_heads,
        causal=False,
        cu_seqlens=cu_seqlens,
        dense_windows=dense,
        max_length=max_length,
        count=count,
    )
