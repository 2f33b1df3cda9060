"""Qwen2.5 and Qwen3: positions count tokens, from 0 in every conversation."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.pack import Media
from lmms.train.families.family import Family, ModelPart, Tower


def positions(cu_seqlens: npt.NDArray[np.int64], media: Sequence[Media], tower: Tower | None) -> npt.NDArray[np.int64]:
    """int64 [1, T] from cu_seqlens [segments + 1]: each token's place in its conversation."""
    starts = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
    return (np.arange(len(starts)) - starts)[np.newaxis]


LANGUAGE_MODEL = "model.language_model"
"""Name of the language model in models that read more than text."""


def language_model(module: str = LANGUAGE_MODEL) -> ModelPart:
    """The language model of all Qwen families up to Qwen3. module: its name in the model."""
    return ModelPart(
        name="llm",
        modules=(module, "lm_head"),
        feeds=None,
        blocks="layers",
        attention="self_attn.o_proj",
        before=("embed_tokens",),
        stages=(
            *("input_layernorm", "[qkv]_proj", "[qk]_norm", "o_proj", "post_attention_layernorm"),
            *("gate_proj|up_proj", "down_proj"),
        ),
        behind=("norm", "lm_head"),
    )


FAMILY = Family(auto_class="AutoModelForCausalLM", parts=(language_model("model"),), positions=positions)
