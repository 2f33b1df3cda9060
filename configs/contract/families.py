"""The families of models, and what settings, prep and train all need of each family: parts and media placeholders.

Facts that only prep or only train needs are in prep/render/families/ and train/families/, under the same name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lmms.configs.errors import ModelError


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyFacts:
    """Facts about a family that need neither its template nor its modules."""

    parts: tuple[str, ...]
    """The parts of the models, in the order of tables; settings may differ and gradients are watched by part."""
    placeholders: Mapping[str, str]
    """Kind of media -> the special token that stands for each piece of it. Other kinds cannot be read."""
    video_areas: Literal["frame", "video"] = "frame"
    """Whether the video processor limits the area of a frame, or of all frames together."""
    video_tokens: tuple[int, int] | None = None
    """Smallest and largest area of videos in tokens, where the processor has these limits whatever its files say."""
    asked_pace: bool = False
    """Whether rows of a video follow each other at the pace that is asked for, not at that of the sampled frames."""
    fills_sounds: bool = False
    """Whether the frames behind a sound are those of silence: see Audio.is_filled."""


_TEXT = FamilyFacts(parts=("llm",), placeholders={})
_VISION = FamilyFacts(
    parts=("llm", "vision", "aligner"), placeholders={"image": "<|image_pad|>", "video": "<|video_pad|>"}
)

_OMNI = FamilyFacts(
    parts=("llm", "vision", "audio", "aligner"),
    placeholders={"image": "<|IMAGE|>", "video": "<|VIDEO|>", "audio": "<|AUDIO|>"},
    video_tokens=(128, 768),
    asked_pace=True,
)

FAMILIES: Mapping[str, FamilyFacts] = {
    "qwen2": _TEXT,
    "qwen3": _TEXT,
    "qwen2_vl": _VISION,
    "qwen2_5_vl": _VISION,
    "qwen3_vl": replace(_VISION, video_areas="video"),
    "qwen2_audio": FamilyFacts(
        parts=("llm", "audio", "aligner"), placeholders={"audio": "<|AUDIO|>"}, fills_sounds=True
    ),
    "qwen2_5_omni": _OMNI,
    "qwen2_5_omni_thinker": _OMNI,
}
"""model_type of config.json -> facts: Qwen2.5, Qwen3, Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen2-Audio, Qwen2.5-Omni.

Of a whole Omni model only the thinker, which reads and writes text, is prepared for and trained; `_thinker` is the
thinker saved alone.
"""


def trained_as(model_type: str) -> str:
    """The model_type of what is trained of a model: of a whole Omni model its thinker, of others the whole."""
    return "qwen2_5_omni_thinker" if model_type == "qwen2_5_omni" else model_type


def family_facts(model_type: object, place: object) -> FamilyFacts:
    """The facts of a family. place: the file with the model_type, for the ModelError about an unknown family."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ModelError(f"{place}: model_type {model_type!r} is not supported; expected one of {known}")
    return FAMILIES[model_type]
