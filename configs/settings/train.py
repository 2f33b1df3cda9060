"""What a user may set for `lmms train`: frozen, checked once. The doc string under a field is its help text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from lmms.configs.by_part import check_patterns
from lmms.configs.contract.loss_weight import LossWeight
from lmms.configs.errors import ConfigError
from lmms.configs.ranges import MOST_SECONDS, Range
from lmms.configs.settings.data import DataConfig, EvalConfig
from lmms.configs.settings.kernels import KernelsConfig
from lmms.configs.settings.log import LogConfig
from lmms.configs.settings.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.settings.memory import MemoryConfig, check_recompute
from lmms.configs.settings.optim import OptimConfig
from lmms.configs.settings.parallel import ParallelConfig, check_offload
from lmms.configs.settings.profile import ProfileConfig
from lmms.configs.typed import check_fields

Steps = Annotated[int, Range(1)]
Length = Annotated[float, Range(above=0)]
How = Literal["full", "lora", "frozen"]
"""How a parameter is trained; lora: it is frozen, and linear layers get LoRA."""
EVERYTHING: Mapping[str, How] = MappingProxyType({"default": "full"})
"""The setting `train` of a run that freezes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model is trained."""

    path: str
    """Model folder or hub id; its tokenizer, template and processor must be those of the shards."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Read the folder's weights, or start from random ones (the folder then needs no weights)."""
    init_from: str | None = None
    """Weights to start with instead, at step 0 alone: a checkpoint or the output of a run (its averages and position
    are not taken), a model folder, or a PEFT adapter."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; master weights are always fp32. auto: bf16 on CUDA, fp32 on the CPU."""

    def __post_init__(self) -> None:
        check_fields(self, "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The settings of one run."""

    model: ModelConfig
    data: DataConfig
    output: str
    """Folder of checkpoints, metrics.jsonl and the resolved config."""
    max_steps: Steps | None = None
    """Optimizer steps of the whole run, counted from its very start. Set this, max_epochs or max_tokens."""
    max_epochs: Length | None = None
    """Instead of max_steps: passes over the shards, or over the mixture."""
    max_tokens: Length | None = None
    """Instead of max_steps: tokens, by the mean of the packs."""
    train: dict[str, How] = field(default_factory=lambda: dict(EVERYTHING))
    """What is trained: {default, llm, vision, aligner, <regex of parameter names>}, each full, lora or frozen."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """How LoRA is made where `train` says lora."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss_weight: LossWeight = "token"
    """What counts alike in the loss: token: every target token; conversation: every conversation, however long; sqrt:
    between them, a conversation counts by the square root of its length. Times the weights of messages and records."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    eval: EvalConfig | None = None
    """Evaluation during training, its loss by token whatever loss_weight is; the order and the random numbers of the
    training do not notice it."""
    seed: int = 0
    """Decides the order of packs and random weights."""
    save_steps: Steps = 500
    """Steps between checkpoints; the last step is always saved."""
    save_async: bool = True
    """Write checkpoints beside the training, from a copy in main memory; false: the training waits."""
    save_total_limit: Steps | None = None
    """Checkpoints kept; the oldest are deleted first. Default: all."""
    save_keep_every: Steps | None = None
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
    grace_s: Annotated[float, Range(0, MOST_SECONDS)] = 60.0
    """Seconds after SIGTERM in which a last checkpoint is written; then the process ends without."""
    stall_s: Annotated[float, Range(1, MOST_SECONDS)] = 1800.0
    """Seconds without progress after which a rank or a loader that hangs becomes an error with its stack."""
    max_skipped: Annotated[int, Range(0)] = 3
    """Steps in a row whose loss or gradient may be infinite or not a number. Such a step leaves the weights as they
    were, and is named; one more stops the run. 0: the first one does."""
    log_steps: Steps = 1
    """Steps between lines of the log; metrics.jsonl has every step."""
    log: LogConfig = field(default_factory=LogConfig)
    """Boards that show the run: TensorBoard, wandb."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Steps whose time and memory are recorded, into output/profile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    deterministic: bool = False
    """The same run on the same machines gives the same bits, at some cost in speed. What has no deterministic way is
    an error; Liger is not used."""

    def __post_init__(self) -> None:
        check_fields(self)
        length = {name: getattr(self, name) for name in ("max_steps", "max_epochs", "max_tokens")}
        given = {name: value for name, value in length.items() if value is not None}
        if len(given) != 1:
            found = " and ".join(f"{name} ({value})" for name, value in given.items()) or "nothing"
            raise ConfigError(
                f"the length of the run is set by {found}, expected one of {', '.join(length)}; null takes one back"
            )
        if self._reads_far_away and self.data.retry_s > 0.9 * self.stall_s:
            raise ConfigError(
                f"data.retry_s is {self.data.retry_s:g}, expected at most 0.9 x stall_s ({self.stall_s:g}): the run"
                " would be ended as hanging before a store that fails is named"
            )
        if self.metric_for_best_model == "eval_loss" and self.eval is None:
            raise ConfigError("metric_for_best_model is eval_loss, but eval is not set; name shards to evaluate on")
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            raise ConfigError("load_best_model_at_end needs metric_for_best_model: loss or eval_loss")
        if self.kernels.compile and self.parallel.sequence > 1:
            raise ConfigError(
                f"kernels.compile is true and parallel.sequence {self.parallel.sequence}: attention over ranks is not"
                " compiled; set one of them back"
            )
        if self.deterministic and self.kernels.liger == "on":
            raise ConfigError(
                "deterministic is true and kernels.liger on, expected one of them: Liger's kernels are none of those"
                " that torch keeps deterministic; set kernels.liger: auto, or deterministic: false"
            )
        check_offload(self.parallel.offload, self.device)
        check_recompute(self.memory, self.kernels.compile)
        check_patterns("train", self.train)
        if self.lora != DEFAULT_LORA and "lora" not in self.train.values():
            raise ConfigError("lora is set, but nothing is trained with it; set train: {llm: lora}, or leave lora out")

    @property
    def _reads_far_away(self) -> bool:
        places = [share.shards for share in (*self.data.shares, *((self.eval,) if self.eval else ()))]
        return any("://" in place for place in places)
