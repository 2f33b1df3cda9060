"""Qwen2-Audio: a sound of up to 30 seconds is one chunk, and silence stands behind a shorter sound.

transformers fills every sound up to 30 seconds, lets all of them through the tower and masks attention to the positions
of the sound. Here the positions of all sounds stand end to end, without those of the silence: the results are the same.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from lmms.train.families import audio, text
from lmms.train.families.family import Family, Sounds, TowerInputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROJECTION = "model.multi_modal_projector"


def features(hf: "PreTrainedModel", frames: Tensor, inputs: TowerInputs) -> Tensor:
    """[sound tokens, hidden]"""
    model: Any = hf.model
    projected: Tensor = model.multi_modal_projector(model.audio_tower(frames, **inputs))
    return projected


def hear_end_to_end(hf: Any) -> None:
    """Let the tower read sounds of any lengths, whose positions stand end to end behind the convolutions."""
    tower = hf.model.audio_tower
    tower.forward = partial(_encoded, tower)


def _encoded(
    tower: Any,
    frames: Tensor,
    *,
    valid_indices: Tensor,
    pool_indices: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    **_: Tensor,
) -> Tensor:
    """[sound tokens, width]: the tower's forward, without dropout. The inputs: see batch.sounds."""
    hidden = F.gelu(tower.conv1(frames.to(tower.conv1.weight.dtype)))
    hidden = F.gelu(tower.conv2(hidden)).transpose(1, 2)
    hidden = hidden + tower.embed_positions.weight[: hidden.shape[1]]
    hidden = hidden.flatten(0, 1).index_select(0, valid_indices).unsqueeze(0)
    bounds = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens}
    longest = {"max_length_q": max_seqlen, "max_length_k": max_seqlen}
    for block in tower.layers:
        hidden = block(hidden, None, **bounds, **longest)
    hidden = hidden.squeeze(0)
    pairs = hidden.index_select(0, pool_indices) + hidden.index_select(0, pool_indices + 1)
    encoded: Tensor = tower.layer_norm(pairs / 2)
    return encoded


FAMILY = Family(
    auto_class="AutoModelForMultimodalLM",
    parts=(
        audio.tower_part(_PROJECTION, norm="layer_norm"),
        audio.projection_part(_PROJECTION, text.LANGUAGE_MODEL, "linear"),
        text.language_model(),
    ),
    positions=text.positions,
    sounds=Sounds(features=features),
    replacements=(audio.convolve_by_product, hear_end_to_end),
    fixed=(f"{audio.TOWER}.embed_positions.weight",),
)
