"""Boards for watching a run, besides metrics.jsonl, which is always written."""

import os
from dataclasses import dataclass
from typing import Literal

from lmms.configs.errors import ConfigError
from lmms.configs.typed import check_fields


@dataclass(frozen=True, kw_only=True, slots=True)
class LogConfig:
    """Boards that show the numbers of metrics.jsonl; see docs/metrics.md."""

    tensorboard: bool = False
    """Also write event files into output/tensorboard; needs the extra lmms[tensorboard]."""
    wandb: str | None = None
    """Also log to this wandb project; needs the extra lmms[wandb]."""
    wandb_name: str | None = None
    """Name of the run in wandb. Default: the name of the output folder."""
    wandb_mode: Literal["online", "offline"] | None = None
    """offline: into output/wandb, without network; `wandb sync` sends the run later. Default: the WANDB_MODE of the
    environment, else online."""

    def __post_init__(self) -> None:
        check_fields(self, "log")
        if self.wandb is None and (self.wandb_name is not None or self.wandb_mode is not None):
            raise ConfigError("log.wandb_name or log.wandb_mode is set, but log.wandb is not; name a wandb project")


def wandb_mode(config: LogConfig) -> str:
    """online, offline, or what else the environment's WANDB_MODE says."""
    return config.wandb_mode or os.environ.get("WANDB_MODE") or "online"
