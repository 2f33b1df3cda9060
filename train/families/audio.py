"""What the Qwen audio families share: where the parts of their towers are, and what they do alike.

Both towers are Whisper's encoder: two convolutions, learned or computed positions, blocks, a norm.
"""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lmms.train.families.family import ModelPart

TOWER = "model.audio_tower"


def tower_part(feeds: str, norm: str) -> ModelPart:
    """An audio tower. feeds: the projection behind. norm: the last norm of the tower."""
    return ModelPart(
        name="audio",
        modules=(TOWER,),
        feeds=feeds,
        blocks="layers",
        attention="self_attn.out_proj",
        before=("conv1", "conv2", "embed_positions|bos_eos"),
        stages=("self_attn_layer_norm", "[qkv]_proj", "out_proj", "final_layer_norm", "fc1", "fc2"),
        behind=(norm,),
    )


def projection_part(module: str, feeds: str, layer: str) -> ModelPart:
    """What gives the features of a tower the width of the language model: this module, and its one layer."""
    return ModelPart(name="aligner", modules=(module,), feeds=feeds, behind=(layer,))


def convolve_by_product(hf: Any) -> None:
    """Let a tower convolve by matrix products: then a sound gets the same bits whatever sounds stand beside it."""
    tower = hf.get_submodule(TOWER)
    for convolution in (tower.conv1, tower.conv2):
        convolution.forward = partial(_convolved, convolution)


def _convolved(convolution: nn.Conv1d, signal: Tensor) -> Tensor:
    """[chunks, channels, length] -> [chunks, width, length / stride], rounded up; the kernel covers three."""
    (size,), (stride,) = convolution.kernel_size, convolution.stride
    windows = F.pad(signal, (1, 1)).unfold(2, size, stride).transpose(1, 2).flatten(2)
    return F.linear(windows, convolution.weight.flatten(1), convolution.bias).transpose(1, 2)
