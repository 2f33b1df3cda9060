"""Others' recipes, as data: what the comparators are, and which of them goals are held against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from tools.gpu.backends import Backend


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """One way to train a transformers model."""

    packed: bool
    """Conversations end to end in one sequence, or a few of them padded to the longest."""
    attention: Backend
    liger: bool = False
    loss: Literal["theirs", "all rows"] = "theirs"
    """transformers' own over all logits (with `liger` Liger's fused one), or lmms's chunked one over every row: what
    Liger's does, for machines without it."""
    linear_patches: bool = False
    """The vision tower's convolution over patches as a product on the same weight. cuDNN has been seen to take seconds
    for it in bf16, and nothing is to be won by that."""


_PLAIN: Mapping[str, Recipe] = MappingProxyType(
    {
        "padded, sdpa": Recipe(packed=False, attention="sdpa"),
        "packed, varlen": Recipe(packed=True, attention="varlen"),
        "packed, varlen, chunked loss": Recipe(packed=True, attention="varlen", loss="all rows"),
        "packed, varlen, liger": Recipe(packed=True, attention="varlen", liger=True),
        "packed, flash-attn-2, liger": Recipe(packed=True, attention="flash-attn-2", liger=True),
    }
)
"""The last is the recipe of LMMs-Engine and VeOmni; torch's varlen holds the kernels of flash-attn 2 too."""

COMPARATORS: Mapping[str, Recipe] = MappingProxyType(
    {
        **_PLAIN,
        **{
            f"{name}, linear patches": replace(recipe, linear_patches=True)
            for name, recipe in _PLAIN.items()
            if recipe.liger or recipe.loss == "all rows"
        },
    }
)
"""Each that may be taken for the packed recipe with its patches both ways."""

RECIPE: Sequence[str] = [name for name in COMPARATORS if COMPARATORS[name].liger]
"""The packed recipe: what goals are held against. Without Liger it is another recipe, and a slower one."""
