"""How weights are updated: the optimizer, the learning rates and their schedule."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lmms.configs.by_part import check_patterns
from lmms.configs.errors import ConfigError
from lmms.configs.ranges import Range
from lmms.configs.typed import check_fields

OptimName = Literal["adamw", "adamw-bf16", "adamw-8bit", "muon"]
"""Names of the optimizers."""
MOMENTUM = 0.95
Averaging = Annotated[float, Range(0, below=1)]
Share = Annotated[float, Range(0, 1)]
Peak = Annotated[float, Range(above=0, advice="to keep a part as it is, freeze it: train")]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: OptimName = "adamw"
    """adamw keeps two averages of each gradient in fp32, adamw-bf16 in bf16, adamw-8bit in blocks of 8-bit codes. muon:
    for the matrices in the blocks of the language model and the towers, with one average in fp32; adamw for the
    rest. All take the same lr and weight_decay."""
    lr: dict[str, Peak] = field(default_factory=lambda: {"default": 1e-5})
    """Peak rates: {default, llm, vision, audio, aligner, <regex of parameter names>}; a number alone is the default."""
    betas: tuple[Averaging, Averaging] = (0.9, 0.95)
    """AdamW's averaging constants."""
    momentum: Averaging = MOMENTUM
    """Muon's averaging constant."""
    eps: Annotated[float, Range(above=0)] = 1e-8
    """AdamW's denominator floor."""
    weight_decay: Annotated[float, Range(0)] = 0.1
    """Decay of parameters with two or more dimensions; norms and biases have none."""
    max_grad_norm: Annotated[float, Range(above=0)] = 1.0
    """Gradients are clipped to this global norm."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape of the decay after the warm-up; wsd: constant (stable), with a linear decay at the end."""
    warmup_steps: Annotated[int, Range(0)] | None = None
    """Steps of linear warm-up from 0. Default: warmup_ratio says how many."""
    warmup_ratio: Share = 0.0
    """Warm-up as a share of the run's steps, rounded up."""
    decay_ratio: Share = 0.1
    """Share of the run's steps in which wsd decays."""
    min_lr_ratio: Share = 0.0
    """Floor of each learning rate, as a share of its peak."""

    def __post_init__(self) -> None:
        check_fields(self, "optim")
        check_patterns("optim.lr", self.lr)
        if self.momentum != MOMENTUM and self.name != "muon":
            raise ConfigError(
                f"optim.momentum is {self.momentum}, but optim.name {self.name} has none (optim.betas are its"
                " averaging constants); set optim.name to muon, or leave momentum out"
            )
        if self.warmup_steps is not None and self.warmup_ratio:
            raise ConfigError(
                f"optim.warmup_steps is {self.warmup_steps} and optim.warmup_ratio {self.warmup_ratio:g}, expected one"
                " of them; set warmup_steps to null, or warmup_ratio to 0"
            )
