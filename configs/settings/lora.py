"""LoRA: additions to the linear layers of the parts that `train` sets to lora."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from lmms.configs.errors import ConfigError
from lmms.configs.ranges import Range
from lmms.configs.typed import check_fields

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank additions to frozen linear layers (arXiv 2106.09685)."""

    rank: Annotated[int, Range(1)] = 16
    """Width of each pair of matrices."""
    alpha: Annotated[int, Range(1)] = 32
    """The addition of each pair is multiplied by alpha / rank."""
    dropout: Annotated[float, Range(0, below=1)] = 0.0
    """Share of a pair's inputs that training sets to 0."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases that are trained too: all biases in what `train` sets to lora, or those of the layers with LoRA."""
    targets: tuple[str, ...] = (ALL_LINEAR,)
    """Layers that get LoRA, by the last parts of their names ([q_proj, mlp.up_proj]); all-linear: all but the head."""
    target_regex: str | None = None
    """Instead of targets: a pattern to search for in the names of linear layers."""
    modules_to_save: tuple[str, ...] = ()
    """Modules of the same parts that are trained in full instead, by the last parts of their names; for a container,
    all modules in it."""

    def __post_init__(self) -> None:
        check_fields(self, "lora")
        if not self.targets:
            raise ConfigError(f"lora.targets is empty, expected names of linear layers or {ALL_LINEAR}")
        if self.target_regex is None:
            return
        if self.targets != (ALL_LINEAR,):
            raise ConfigError("lora.targets and lora.target_regex are both set; set one of them")
        try:
            re.compile(self.target_regex)
        except re.error as error:
            raise ConfigError(f"lora.target_regex {self.target_regex!r} is no regular expression ({error})") from None


DEFAULT_LORA = LoraConfig()
