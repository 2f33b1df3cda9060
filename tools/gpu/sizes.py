"""How large everything is: whole models on a GPU, or the same in miniature where there is none."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the pieces of a bench depend on, beside what they measure."""

    device: Literal["cuda", "cpu"]
    precision: Literal["bf16", "fp32"]
    thin: bool
    """Two narrow layers of each kind instead of the whole model."""
    seq_len: int
    """Tokens of a pack; every pack is full."""
    packs: int
    """Of a file. A step is one pass over all of them, one in a forward pass: the same work in every step."""
    conversation: tuple[int, int, int]
    """Tokens: shortest, median, longest."""
    image: tuple[int, int]
    """Tokens of an image: fewest, most."""
    warm_steps: int
    timed_steps: int
    """At most; fewer where the time is short."""
    workers: int
    """Loader processes."""
    repeats: int
    """Of what is timed alone."""
    backend: Literal["inductor", "aot_eager"]
    """What compiles blocks; aot_eager makes the graphs and writes no kernels."""


FULL = Sizes(
    device="cuda",
    precision="bf16",
    thin=False,
    seq_len=16384,
    packs=2,
    conversation=(200, 1600, 4096),
    image=(64, 1280),
    warm_steps=2,
    timed_steps=4,
    workers=6,
    repeats=20,
    backend="inductor",
)

MINI = Sizes(
    device="cpu",
    precision="fp32",
    thin=True,
    seq_len=256,
    packs=2,
    conversation=(16, 60, 160),
    image=(4, 25),
    warm_steps=1,
    timed_steps=2,
    workers=0,
    repeats=2,
    backend="aot_eager",
)

MINI_ON_GPU = replace(MINI, device="cuda", precision="bf16", workers=2, backend="inductor")
"""Whether every piece runs there, in a minute or two."""
