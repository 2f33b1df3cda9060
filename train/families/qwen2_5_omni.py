"""Qwen2.5-Omni, of which only the thinker is trained: it sees as Qwen2.5-VL does, and hears sounds in chunks.

The positions of a video follow time, and what comes behind a video goes on behind its time.
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lmms.train.families import audio, qwen2_5_vl, vision
from lmms.train.families.family import Family, Sounds, Tower, TowerInputs
from lmms.train.families.text import LANGUAGE_MODEL, language_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_PROJECTION = f"{audio.TOWER}.proj"


def tower(hf_config: "PretrainedConfig") -> Tower:
    """What the vision tower's inputs depend on. hf_config: the thinker's."""
    seconds: Any = hf_config
    return replace(
        qwen2_5_vl.windowed_tower(hf_config.vision_config),
        tokens_per_second=seconds.position_id_per_seconds,
        time_takes_room=True,
    )


def features(hf: "PreTrainedModel", frames: Tensor, inputs: TowerInputs) -> Tensor:
    """[sound tokens, hidden]. transformers' forward, which takes what it would else make on the device."""
    model: Any = hf.model
    projected: Tensor = model.audio_tower(padded_feature=frames, **inputs).last_hidden_state
    return projected


FAMILY = Family(
    auto_class="AutoModelForMultimodalLM",
    parts=(
        vision.tower_part("gate_proj|up_proj", "down_proj"),
        vision.merger_part("merger", norm="ln_q", first=r"mlp\.0", second=r"mlp\.2"),
        audio.tower_part(_PROJECTION, norm="ln_post"),
        audio.projection_part(_PROJECTION, LANGUAGE_MODEL, "proj"),
        language_model(),
    ),
    positions=vision.positions,
    images=replace(qwen2_5_vl.IMAGES, tower=tower),
    sounds=Sounds(features=features),
    replacements=(vision.embed_by_product, qwen2_5_vl.attend_by_image, audio.convolve_by_product),
    beside=("talker", "token2wav"),
    fixed=(f"{audio.TOWER}.audio_bos_eos_token.weight",),
)
