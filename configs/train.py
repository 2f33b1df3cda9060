"""What a user may set for `lmms train`: frozen, checked once. The doc string under a field is its help text."""

from dataclasses import dataclass, field
from typing import Literal

from lmms.configs.errors import ConfigError
from lmms.configs.kernels import KernelsConfig

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
class ShareConfig:
    """One set of shards of a mixture, and how much of it there is: by weight, tokens or epochs, the same for all."""

    shards: str
    """Folder or URL of one shard folder."""
    weight: float | None = None
    """Share of the tokens, relative to the other sets' weights."""
    tokens: float | None = None
    """Tokens of this set in each pass over the mixture."""
    epochs: float | None = None
    """Passes over this set in each pass over the mixture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Which shards are read, in which order, and how."""

    shards: str = ""
    """Folder that `lmms prep build-shards` wrote, or its URL: s3, gs, az, http(s), sftp, hf, oci, dbfs."""
    mixture: tuple[ShareConfig, ...] = ()
    """Several sets of shards instead of one: a list of {shards, weight | tokens | epochs}."""
    global_packs: int = 8
    """Packs of an optimizer step, over all ranks and micro-steps; no ranks have to divide it."""
    group_packs: int = 1
    """Neighbours in the order that cost alike: the number of ranks, if packs differ much; see `lmms inspect order`."""
    micro_packs: int = 1
    """Packs of a forward pass on one rank; the rest of a rank's share is accumulated."""
    workers: int = 2
    """Loader processes a rank; 0 loads in the training process. The order does not depend on it."""
    on_bad_media: Literal["stop", "mask"] = "stop"
    """An image that fails at training: stop with its record's name, or train its conversation with weight 0."""
    cache: str | None = None
    """Folder on this node for shards read from a URL; runs may share it. Default: packs are read where they are."""
    cache_gb: float = 200.0
    """Size of the cache, in 1e9 bytes; shards whose next use is furthest go first."""
    retry_s: float = 120.0
    """Seconds for which a store that fails is asked again before the run stops."""


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
class EvalConfig:
    """Shards that are not trained on, and how often their loss is taken."""

    shards: str
    """Folder or URL of a shard folder; all of its packs are read each time."""
    every_steps: int = 500
    """Optimizer steps between evaluations; the last step is always evaluated."""


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
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    eval: EvalConfig | None = None
    """Evaluation during training; the order and the random numbers of the training do not notice it."""
    seed: int = 0
    """Of the order of packs and of random weights."""
    save_steps: int = 500
    """Steps between checkpoints; the last step is always saved."""
    save_async: bool = True
    """Write checkpoints beside the training, from a copy in main memory; false: the training waits."""
    save_total_limit: int | None = None
    """Checkpoints kept; the oldest are deleted first. Default: all."""
    save_keep_every: int | None = None
    """Checkpoints of steps that are a multiple of this are never deleted."""
    metric_for_best_model: Literal["loss", "eval_loss"] | None = None
    """The checkpoint that is best by this is never deleted, and best.json names it."""
    greater_is_better: bool = False
    """Direction of metric_for_best_model."""
    load_best_model_at_end: bool = False
    """`lmms export RUN` then takes the best checkpoint of a run, else its newest."""
    resume: str = "auto"
    """auto: from the newest complete checkpoint in output, if any; never; or a checkpoint folder."""
    resume_changes: tuple[Literal["global_packs", "mixture"], ...] = ()
    """What may differ from the run that is resumed; it takes effect from the position reached."""
    grace_s: float = 60.0
    """Seconds after SIGTERM in which a last checkpoint is written; then the process ends without."""
    stall_s: float = 1800.0
    """Seconds without progress after which a rank or a loader that hangs becomes an error with its stack."""
    log_steps: int = 1
    """Steps between lines of the log and of metrics.jsonl."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""

    def __post_init__(self) -> None:
        for name, value, low in (
            ("data.global_packs", self.data.global_packs, 1),
            ("data.group_packs", self.data.group_packs, 1),
            ("data.micro_packs", self.data.micro_packs, 1),
            ("data.workers", self.data.workers, 0),
            ("max_steps", self.max_steps, 1),
            ("save_steps", self.save_steps, 1),
            ("log_steps", self.log_steps, 1),
            ("optim.warmup_steps", self.optim.warmup_steps, 0),
            ("save_total_limit", 1 if self.save_total_limit is None else self.save_total_limit, 1),
            ("save_keep_every", 1 if self.save_keep_every is None else self.save_keep_every, 1),
            ("eval.every_steps", self.eval.every_steps if self.eval else 1, 1),
            ("data.cache_gb", self.data.cache_gb, 0),
            ("data.retry_s", self.data.retry_s, 0),
            ("grace_s", self.grace_s, 0),
            ("stall_s", self.stall_s, 1),
        ):
            if value < low:
                raise ConfigError(f"{name} is {value}, expected at least {low}")
        if self.optim.lr <= 0 or self.optim.max_grad_norm <= 0 or self.optim.eps <= 0 or self.optim.weight_decay < 0:
            raise ConfigError("optim: lr, eps and max_grad_norm must be above 0, weight_decay at least 0")
        if not all(0 <= beta < 1 for beta in self.optim.betas):
            raise ConfigError(f"optim.betas is {list(self.optim.betas)}, expected numbers from 0 to below 1")
        if not 0 <= self.optim.min_lr_ratio <= 1:
            raise ConfigError(f"optim.min_lr_ratio is {self.optim.min_lr_ratio}, expected a share between 0 and 1")
        _check_shares(self.data)
        if self.metric_for_best_model == "eval_loss" and self.eval is None:
            raise ConfigError("metric_for_best_model is eval_loss, but eval is not set; name shards to evaluate on")
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            raise ConfigError("load_best_model_at_end needs metric_for_best_model: loss or eval_loss")
        if set(self.model.freeze) == {"vision", "aligner", "llm"}:
            raise ConfigError("model.freeze names every part: nothing would be trained")


def _check_shares(data: DataConfig) -> None:
    if bool(data.shards) == bool(data.mixture):
        raise ConfigError("set one of data.shards (one set) and data.mixture (several)")
    kinds = set()
    for i, share in enumerate(data.mixture):
        amounts = {kind: getattr(share, kind) for kind in ("weight", "tokens", "epochs")}
        given = [kind for kind, amount in amounts.items() if amount is not None]
        if len(given) != 1 or amounts[given[0]] <= 0:
            raise ConfigError(f"data.mixture[{i}] has {given or 'no amount'}, expected one of {list(amounts)}, above 0")
        kinds.add(given[0])
    if len(kinds) > 1:
        raise ConfigError(f"data.mixture measures by {sorted(kinds)}, expected one of them for all sets")
