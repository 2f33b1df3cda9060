"""Settings of `lmms train`: frozen, checked once. The docstring under a field is its help text."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

from lmms.configs.by_part import check_patterns
from lmms.configs.contract.loss_rule import LossWeight
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
from lmms.configs.stores.store import is_url
from lmms.configs.typed import check_fields

Steps = Annotated[int, Range(1)]
Length = Annotated[float, Range(above=0)]
Precision = Literal["auto", "bf16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
ExportType = Literal["fp32", "bf16"]
"""The type of the weights that `lmms export` writes."""
How = Literal["full", "lora", "frozen"]
"""How a parameter is trained; lora: the parameter is frozen, and linear layers get LoRA."""
EVERYTHING: Mapping[str, How] = MappingProxyType({"default": "full"})
"""The setting `train` of a run that freezes nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Which model is trained."""

    path: str
    """Model folder or hub id; its tokenizer, template and processor must be the same as for the shards."""
    init: Literal["pretrained", "random"] = "pretrained"
    """Read the folder's weights, or start from random ones (the folder then needs no weights)."""
    init_from: str | None = None
    """Other weights to start with, at step 0 only: a checkpoint or the output of a run (without its averages and
    position), a model folder, or a PEFT adapter."""
    precision: Precision = "auto"
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
    """Optimizer steps of the whole run, counted from its first step. Set max_steps, max_epochs or max_tokens."""
    max_epochs: Length | None = None
    """Instead of max_steps: passes over the shards, or over the mixture."""
    max_tokens: Length | None = None
    """Instead of max_steps: tokens of the whole run, counted by the mean tokens of a pack."""
    train: dict[str, How] = field(default_factory=lambda: dict(EVERYTHING))
    """What is trained: {default, llm, vision, audio, aligner, <regex of names>}, each full, lora or frozen."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Shape of LoRA, for the parts that `train` sets to lora."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss_weight: LossWeight = "token"
    """Unit that counts equally in the loss: token: every target token; conversation: every conversation, short or long;
    sqrt: between them, a conversation counts by the square root of its length. The weights of messages and
    records come on top."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    eval: EvalConfig | None = None
    """Evaluation during training, always with the loss by token; the order and the random numbers of the training
    stay the same."""
    seed: int = 0
    """Decides the order of packs and random weights."""
    save_steps: Steps = 500
    """Steps between checkpoints; the last step is always saved."""
    save_async: bool = True
    """Write checkpoints during the training, from a copy in main memory; false: the training waits."""
    save_total_limit: Steps | None = None
    """Checkpoints kept; the oldest are deleted first. Default: all."""
    save_keep_every: Steps | None = None
    """Checkpoints of steps that are a multiple of this number are never deleted."""
    metric_for_best_model: Literal["loss", "eval_loss"] | None = None
    """The best checkpoint by this metric is never deleted, and best.json names it."""
    greater_is_better: bool = False
    """Direction of metric_for_best_model."""
    load_best_model_at_end: bool = False
    """`lmms export RUN` then takes the best checkpoint of a run, else its newest."""
    resume: str = "auto"
    """auto: from the newest complete checkpoint in output, if any; never; or a checkpoint folder."""
    resume_changes: tuple[Literal["global_packs", "mixture"], ...] = ()
    """Settings that may differ from the resumed run; the new values hold from the position reached."""
    grace_s: Annotated[float, Range(0, MOST_SECONDS)] = 60.0
    """Seconds after SIGTERM to write a last checkpoint; then the process ends without it."""
    stall_s: Annotated[float, Range(1, MOST_SECONDS)] = 1800.0
    """Seconds without progress after which a hanging rank or loader is an error with its stack."""
    max_skipped: Annotated[int, Range(0)] = 3
    """Most steps in a row with a loss or gradient that is infinite or not a number. Such a step leaves the weights
    unchanged, and the log names it; one more such step stops the run. 0: the first such step stops the run."""
    log_steps: Steps = 1
    """Steps between lines of the log; metrics.jsonl has every step."""
    log: LogConfig = field(default_factory=LogConfig)
    """Boards that show the run: TensorBoard, wandb."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Steps whose time and memory are recorded in output/profile."""
    device: Device = "auto"
    """auto: cuda if there is a GPU."""
    deterministic: bool = False
    """The same run on the same machines gives the same bits, at some cost in speed. An operation with no deterministic
    form is an error; Liger is not used."""

    def __post_init__(self) -> None:
        check_fields(self)
        length = {name: getattr(self, name) for name in ("max_steps", "max_epochs", "max_tokens")}
        given = {name: value for name, value in length.items() if value is not None}
        if len(given) != 1:
            lengths = " and ".join(f"{name} ({value})" for name, value in given.items()) or "nothing"
            raise ConfigError(
                f"the length of the run is set by {lengths}, expected one of {', '.join(length)}; null takes one back"
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
        return any(is_url(place) for place in places)
