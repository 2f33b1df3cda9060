"""The ablation ladder, as data: each rung is the rung before it with a few more settings of a run file.

One line here adds a rung for a new setting of the trainer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from tools.gpu.pieces.models import LARGE

RECOMPUTE = "memory.recompute"
"""The setting for what backward computes again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """Settings with which a training is measured."""

    name: str
    settings: Mapping[str, Any]
    """Dotted key of a run file -> value."""
    loss: Literal["chunked", "whole"] = "chunked"
    """The trainer's loss, or all logits of the target rows at once, for which there is no setting."""


_EAGER = {"kernels.attention": "sdpa", "kernels.liger": "off", "kernels.compile": False, RECOMPUTE: "full"}

LADDER: tuple[Rung, ...] = tuple(
    accumulate(
        (
            Rung(name="eager", settings=_EAGER, loss="whole"),
            # Before compile: compiled blocks have no fast attention with sdpa.
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
"""The rung that fits one card of 80 GB by the dry run's arithmetic; it is measured before all other rungs."""
CANDIDATES = NAMES[NAMES.index(LEAST) :]
"""The rungs from LEAST on; goals are compared with the fastest that passes. No rung before LEAST is faster."""

_LEAST = LADDER[NAMES.index(LEAST)].settings

OTHERS: tuple[Rung, ...] = (
    *(
        Rung(name=f"{LEAST}, {kernel}", settings={**_LEAST, "kernels.attention": kernel})
        for kernel in ("flash-attn-2", "flash-attn-3", "flash-attn-4")
    ),
    Rung(name="liger", settings={**_LEAST, "kernels.compile": False, "kernels.liger": "on"}),
)
"""Rungs next to the ladder: LEAST with the kernels of another package."""

LORA: Mapping[str, Mapping[str, Any]] = {LARGE: {"train": {"default": "frozen", "llm": "lora"}}}
"""Settings of models that do not fit one card without them."""


def rung_of(name: str) -> Rung:
    """The rung of this name."""
    return next(rung for rung in (*LADDER, *OTHERS) if rung.name == name)
