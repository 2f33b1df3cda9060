"""How weights are updated: the optimizer, the learning rates and their schedule."""

from dataclasses import dataclass, field
from typing import Literal

from lmms.configs.by_part import check_patterns
from lmms.configs.errors import ConfigError

OptimName = Literal["adamw", "adamw-bf16", "adamw-8bit", "muon"]
"""How weights are updated, see train/optim/rules.py."""
MOMENTUM = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: OptimName = "adamw"
    """adamw keeps two averages of each gradient in fp32, adamw-bf16 in bf16, adamw-8bit in blocks of 8-bit codes. muon:
    for the matrices in the blocks of the language model and the vision tower, with one average in fp32; adamw for the
    rest. All take the same lr and weight_decay."""
    lr: dict[str, float] = field(default_factory=lambda: {"default": 1e-5})
    """Peak rates: {default, llm, vision, aligner, <regex of parameter names>}; a number alone is the default."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging constants."""
    momentum: float = MOMENTUM
    """Muon's averaging constant."""
    eps: float = 1e-8
    """AdamW's denominator floor."""
    weight_decay: float = 0.1
    """Of parameters with two or more dimensions; norms and biases have none."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape of the decay after the warm-up; wsd: none (stable) but for a linear one at the end."""
    warmup_steps: int | None = None
    """Steps of linear warm-up from 0. Default: warmup_ratio says how many."""
    warmup_ratio: float = 0.0
    """The same as a share of the run's steps, rounded up."""
    decay_ratio: float = 0.1
    """Share of the run's steps in which wsd decays."""
    min_lr_ratio: float = 0.0
    """Floor of each learning rate, as a share of its peak."""

    def __post_init__(self) -> None:
        for name in ("eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"optim.{name} is {getattr(self, name):g}, expected above 0")
        if self.weight_decay < 0:
            raise ConfigError(f"optim.weight_decay is {self.weight_decay:g}, expected at least 0")
        for name, peak in self.lr.items():
            if peak <= 0:
                raise ConfigError(
                    f"optim.lr of {name} is {peak}, expected above 0; to keep it as it is, freeze it: train"
                )
        check_patterns("optim.lr", self.lr)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas is {list(self.betas)}, expected numbers from 0 to below 1")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optim.momentum is {self.momentum}, expected a number from 0 to below 1")
        if self.momentum != MOMENTUM and self.name != "muon":
            raise ConfigError(
                f"optim.momentum is {self.momentum}, but optim.name {self.name} has none (optim.betas are its"
                " averaging constants); set optim.name to muon, or leave momentum out"
            )
        if (self.warmup_steps or 0) < 0:
            raise ConfigError(f"optim.warmup_steps is {self.warmup_steps}, expected at least 0")
        if self.warmup_steps is not None and self.warmup_ratio:
            raise ConfigError(
                f"optim.warmup_steps is {self.warmup_steps} and optim.warmup_ratio {self.warmup_ratio:g}, expected one"
                " of them; set warmup_steps to null, or warmup_ratio to 0"
            )
        for name in ("warmup_ratio", "decay_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}, expected a share between 0 and 1")
