"""What a user may set for `lmms train`: frozen, checked once. The doc string under a field is its help text."""

from dataclasses import dataclass, field
from typing import Literal

from lmms.configs.errors import ConfigError

Part = Literal["vision", "aligner", "llm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model is trained."""

    path: str
    """Model folder or hub id; its tokenizer, template and processor must be those of the shards."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Read the folder's weights, or start from random ones (the folder then needs no weights)."""
    freeze: tuple[Part, ...] = ()
    """Parts that are not trained: vision, aligner (the merger between the towers), llm."""
    recompute: Literal["none", "full"] = "full"
    """Activation checkpointing: keep nothing but the inputs of each block (full), or everything (none)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; master weights are always fp32. auto: bf16 on CUDA, fp32 on the CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which shards are read, and how."""

    shards: str
    """Folder that `lmms prep build-shards` wrote."""
    global_packs: int = 8
    """Packs of an optimizer step, over all ranks and micro-steps."""
    micro_packs: int = 1
    """Packs of a forward pass on one rank; the rest of a rank's share is accumulated."""
    workers: int = 2
    """Loader processes a rank; 0 loads in the training process. The order does not depend on it."""
    on_bad_media: Literal["stop", "mask"] = "stop"
    """An image that fails at training: stop with its record's name, or train its conversation with weight 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule. Weight decay is not applied to 1-D parameters."""

    lr: float = 1e-5
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's averaging constants."""
    eps: float = 1e-8
    """AdamW's denominator floor."""
    weight_decay: float = 0.1
    """Of parameters with two or more dimensions."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up from 0."""
    min_lr_ratio: float = 0.0
    """Floor of the learning rate, as a share of lr."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run."""

    model: ModelConfig
    data: DataConfig
    output: str
    """Folder of checkpoints, metrics.jsonl and the resolved config."""
    max_steps: int
    """Optimizer steps of the whole run, counted from its very start."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    seed: int = 0
    """Of the order of packs and of random weights."""
    save_steps: int = 500
    """Steps between checkpoints; the last step is always saved."""
    save_total_limit: int | None = None
    """Checkpoints kept; the oldest are deleted first. Default: all."""
    resume: str = "auto"
    """auto: from the newest complete checkpoint in output, if any; never; or a checkpoint folder."""
    log_steps: int = 1
    """Steps between lines of the log and of metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        for name, value, low in (
            ("data.global_packs", self.data.global_packs, 1),
            ("data.micro_packs", self.data.micro_packs, 1),
            ("data.workers", self.data.workers, 0),
            ("max_steps", self.max_steps, 1),
            ("save_steps", self.save_steps, 1),
            ("log_steps", self.log_steps, 1),
            ("optim.warmup_steps", self.optim.warmup_steps, 0),
            ("save_total_limit", 1 if self.save_total_limit is None else self.save_total_limit, 1),
        ):
            if value < low:
                raise ConfigError(f"{name} is {value}, expected at least {low}")
        if self.optim.lr <= 0 or self.optim.max_grad_norm <= 0 or self.optim.eps <= 0 or self.optim.weight_decay < 0:
            raise ConfigError("optim: lr, eps and max_grad_norm must be above 0, weight_decay at least 0")
        if not all(0 <= beta < 1 for beta in self.optim.betas):
            raise ConfigError(f"optim.betas is {list(self.optim.betas)}, expected numbers from 0 to below 1")
        if not 0 <= self.optim.min_lr_ratio <= 1:
            raise ConfigError(f"optim.min_lr_ratio is {self.optim.min_lr_ratio}, expected a share between 0 and 1")
        if set(self.model.freeze) == {"vision", "aligner", "llm"}:
            raise ConfigError("model.freeze names every part: nothing would be trained")
