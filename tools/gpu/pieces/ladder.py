"""The ablation ladder, as data: each rung is the one before it and a few settings of a run file more.

A new setting of the trainer gets a rung by one line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from tools.gpu.pieces.models import LARGE

RECOMPUTE = "memory.recompute"
"""The setting that says what is computed again in backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """What a training is measured with."""

    name: str
    settings: Mapping[str, Any]
    """Dotted key of a run file -> value."""
    loss: Literal["chunked", "whole"] = "chunked"
    """The trainer's loss, or all logits of the target rows at once, which no setting gives."""


_EAGER = {"kernels.attention": "sdpa", "kernels.liger": "off", "kernels.compile": False, RECOMPUTE: "full"}

LADDER: tuple[Rung, ...] = tuple(
    accumulate(
        (
            Rung(name="eager", settings=_EAGER, loss="whole"),
            # Before compiling: compiled blocks have no fast way to attend with sdpa.
            Rung(name="+ attention", settings={"kernels.attention": "auto"}, loss="whole"),
            Rung(name="+ compile", settings={"kernels.compile": True}, loss="whole"),
            Rung(name="+ loss", settings={}),
            Rung(name="+ adamw-8bit", settings={"optim.name": "adamw-8bit"}),
            Rung(name="+ recompute elementwise", settings={RECOMPUTE: "elementwise"}),
            Rung(name="+ recompute none", settings={RECOMPUTE: "none"}),
        ),
        lambda below, step: Rung(name=step.name, settings={**below.settings, **step.settings}, loss=step.loss),
    )
)
NAMES: tuple[str, ...] = tuple(rung.name for rung in LADDER)
LEAST = "+ loss"
"""The rung that fits one card of 80 GB by the dry run's arithmetic, and is measured before all others."""
CANDIDATES = NAMES[NAMES.index(LEAST) :]
"""The rungs from there on, of which goals are held to the fastest that passes: none below them is faster."""

_LEAST = LADDER[NAMES.index(LEAST)].settings

OTHERS: tuple[Rung, ...] = (
    *(
        Rung(name=f"{LEAST}, {kernel}", settings={**_LEAST, "kernels.attention": kernel})
        for kernel in ("flash-attn-2", "flash-attn-3", "flash-attn-4")
    ),
    Rung(name="liger", settings={**_LEAST, "kernels.compile": False, "kernels.liger": "on"}),
)
"""Beside the ladder: another package's kernels in that rung."""

LORA: Mapping[str, Mapping[str, Any]] = {LARGE: {"train": {"default": "frozen", "llm": "lora"}}}
"""Settings of models that do not fit one card otherwise."""


def rung_of(name: str) -> Rung:
    """The rung of this name."""
    return next(rung for rung in (*LADDER, *OTHERS) if rung.name == name)
