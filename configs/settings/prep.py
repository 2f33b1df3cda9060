"""What a user may set for `lmms prep build-shards`: frozen, checked once."""

import os
from dataclasses import dataclass, field
from typing import Literal

from lmms.configs.errors import ConfigError

MAX_SEQ_LEN = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepConfig:
    """One build. The doc string under a field is its help text, on the command line too."""

    sources: tuple[str, ...]
    """Files, folders or globs of chat records: .jsonl (.gz, .zst), .parquet, .arrow, save_to_disk folders."""
    model: str
    """Model folder or hub id: its tokenizer, chat template and processor settings are used."""
    seq_len: int
    """Tokens of a pack."""
    out: str
    """Folder to write; must not exist."""
    media_root: str | None = None
    """Folder that image paths are relative to and may not leave; by default the record file's own folder."""
    min_pixels: int | None = None
    """Smallest image area after the resize, in pixels; by default the processor's."""
    max_pixels: int | None = None
    """Largest image area after the resize, in pixels; by default the processor's."""
    max_patches: int | None = None
    """Vision patches of a pack; by default as many as seq_len tokens of image would take."""
    verify_media: Literal["header", "structure", "decode"] = "structure"
    """How far to check an image: its header, its file structure to the end, or every pixel."""
    max_image_pixels: int = 178_956_970
    """Largest image accepted, in pixels before the resize, judged by its header (Pillow's bomb limit)."""
    max_rejects: float = 0.01
    """Share of rejected records above which the build stops."""
    seed: int = 0
    """Of the order of packs in the shards."""
    shard_bytes: int = 128 * 2**20
    """Size of a shard file at which the next one starts."""
    workers: int = field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    )
    """Processes that render and write; the result does not depend on it. Default: one a core."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("sources is empty: expected at least one file, folder or glob")
        for name in ("seq_len", "workers", "min_pixels", "max_pixels", "max_patches", "max_image_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}, expected at least 1")
        if self.seq_len > MAX_SEQ_LEN:
            raise ConfigError(f"seq_len is {self.seq_len}, expected at most {MAX_SEQ_LEN}")
        if not 0 <= self.max_rejects <= 1:
            raise ConfigError(f"max_rejects is {self.max_rejects}, expected a share between 0 and 1")
        if not 2**20 <= self.shard_bytes <= 2**31:
            raise ConfigError(f"shard_bytes is {self.shard_bytes}, expected 1 MiB to 2 GiB")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
