"""Settings of `lmms prep build-shards`: frozen, checked once."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from lmms.configs.by_part import PARTS
from lmms.configs.errors import ConfigError
from lmms.configs.files import at_home
from lmms.configs.ranges import Range
from lmms.configs.settings.sources import RecordConfig, SourceConfig
from lmms.configs.settings.transforms import read_transforms
from lmms.configs.stores.remote import WRITABLE_SCHEMES
from lmms.configs.stores.store import is_url, scheme_of, shown
from lmms.configs.typed import check_fields

MAX_SEQ_LEN = 2**22
LEAST_MEMORY = 1280 * 2**20
"""Bytes for two processes: one that reads, and one that works with the largest tokenizer and a chunk."""
Positive = Annotated[int, Range(1)]
Duplicates = Literal["keep", "drop"]


STORE_ENDING = ".lmms-store"
"""Ending of the folder beside the output that keeps what a build has done so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepConfig(RecordConfig):
    """One build. The docstring under a field is its help text, on the command line too."""

    sources: tuple[SourceConfig | str, ...]
    """Files, folders, globs or URLs of records: .jsonl, .json, .csv, .parquet, .arrow, .tar, save_to_disk folders. In
    YAML also {path: ..., ...}, with settings of that source; a .yaml file is a list of such, or a data set file of
    LMMs-Engine."""
    model: str
    """Model folder or hub id: its tokenizer, chat template and processor settings are used."""
    seq_len: Annotated[int, Range(1, MAX_SEQ_LEN)]
    """Tokens of a pack."""
    out: str
    """Folder to write; must not exist. Or a URL of a folder: s3://, gs:// or az://."""
    work: str | None = None
    """If `out` is a URL: the folder for files of a build that is not complete; by default the working folder."""
    eval_out: str | None = None
    """Folder of the shards for evaluation, see eval_share; by default the name of `out` with -eval behind."""
    media_root: str | tuple[str, ...] | None = None
    """Folder that image paths are relative to and may not leave; several, as [A, B], are tried in order, and links may
    lead from one to another. By default the folder of the record file."""
    allow_network: bool = False
    """Fetch images that records name by http or https, from public addresses only."""
    pinned_images: str | None = None
    """Shard folder of an earlier build: a picture with other bytes under its URL than then is rejected."""
    chat_template: str | None = None
    """File of a Jinja chat template to use in place of the model's; a trained model is exported with this template."""
    min_pixels: Positive | None = None
    """Smallest image area after the resize, in pixels; by default the processor's."""
    max_pixels: Positive | None = None
    """Largest image area after the resize, in pixels; by default the processor's."""
    max_patches: Positive | None = None
    """Vision patches of a pack; by default as many as seq_len tokens of image would take."""
    plan: Literal["balanced", "tight"] = "balanced"
    """How samples share packs. balanced: packs cost alike in training, so that ranks wait less for one another; tight:
    as few packs as can be."""
    more_packs: Annotated[float, Range(0, 1)] = 0.01
    """With plan balanced: how many packs more than a tight plan there may be, as a share of those."""
    cost_of: dict[str, Literal["full", "frozen"]] = field(default_factory=dict)
    """With plan balanced: parts of the model that will be frozen, as {vision: frozen}, since they cost less; by default
    everything is trained."""
    text_overlap: Annotated[int, Range(0, MAX_SEQ_LEN)] = 0
    """Tokens that a piece of a long text shares with the piece before: context, learned once."""
    verify_media: Literal["header", "structure", "decode"] = "structure"
    """How far to check an image: its header, its file structure to the end, or every pixel."""
    max_image_pixels: Positive = 178_956_970
    """Largest image accepted, in pixels before the resize, judged by its header (Pillow's bomb limit)."""
    video_backend: Literal["auto", "decord", "torchcodec", "pyav"] = "auto"
    """Library that decodes videos; auto: see docs/media.md."""
    video_frames: Literal["resized", "original"] = "resized"
    """Which frames of videos the shards hold: as the model sees them, or in their full size, which training resizes."""
    video_encoding: Literal["jpeg", "png"] = "jpeg"
    """How frames of videos are stored; png loses nothing and is several times larger."""
    video_quality: Annotated[int, Range(1, 100)] = 95
    """Quality of the JPEGs that frames of videos become."""
    audio_encoding: Literal["flac16", "flac24"] = "flac16"
    """How sounds are stored: in samples of 16 or of 24 bits; the second is nearer to quiet sounds, and larger."""
    audio_too_long: Literal["reject", "cut"] = "reject"
    """What becomes of a sound that is longer than the model hears: its record is rejected, or the rest is left out."""
    media_timeout: Annotated[float, Range(0.1, 86400)] = 60.0
    """Seconds in which a video or sound must be decoded; a longer time is a rejection."""
    media_memory: Annotated[int, Range(2**26)] = 4 * 2**30
    """Bytes of memory in which a video or sound must be decoded; on Linux, more is a rejection."""
    edited_jpeg_quality: Annotated[int, Range(1, 100)] | None = None
    """Quality of the JPEGs that transforms make of pictures; by default PNG, which loses nothing and is larger."""
    max_rejects: Annotated[float, Range(0, 1)] = 0.01
    """Share of rejected records above which the build stops."""
    duplicates: Duplicates = "keep"
    """Records that equal an earlier record of the build in tokens, targets and pictures: keep them, or drop them."""
    seed: int = 0
    """Decides the order of packs in the shards, which records a `repeat` such as 0.3 takes, what transforms draw."""
    shard_bytes: Annotated[int, Range(2**20, 2**31)] = 128 * 2**20
    """Size of a shard file at which the next file starts."""
    workers: Annotated[int, Range(0)] = field(
        default_factory=lambda: (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
    )
    """Processes that render and write; any number gives the same result. A record with which a process dies twice, for
    want of memory or by a crash of a library, is rejected. With 0 the build itself does all, and dies with such a
    record. Default: one for each core."""
    memory: Annotated[int, Range(LEAST_MEMORY)] | None = None
    """Bytes that the processes of a build take together, about; by default there is no bound. Where they are not enough
    for all `workers`, fewer work at once; a record that is too large for one of them is rejected. For records of
    pictures and text: the decoders of videos have media_memory each. Linux only."""
    engine: Literal["local", "ray"] = "local"
    """What does the work, with the same result: processes of this machine, or tasks of a Ray cluster, the one of
    RAY_ADDRESS or of this machine (extra `ray`). Then all its machines have to reach the files of the build."""
    store: str | None = None
    """Folder that keeps what records became, so that a later build tokenizes only what is new. By default
    OUT.lmms-store, until the build is complete: a build that was cut off goes on. `none` keeps nothing."""
    fast: bool = True
    """Use a faster tokenizer and what is known of published chat templates, where that gives the same shards."""

    @property
    def source_configs(self) -> tuple[SourceConfig, ...]:
        """The sources, each as a mapping of settings."""
        return tuple(SourceConfig(path=source) if isinstance(source, str) else source for source in self.sources)

    @property
    def folder(self) -> Path:
        """The folder to write; if `out` is a URL, the folder beside which the files of an incomplete build are."""
        return self._folder_of(self.out)

    @property
    def store_folder(self) -> Path | None:
        """The folder of the store, see `store`; None: nothing is kept."""
        if self.store == "none":
            return None
        return Path(at_home(self.store)) if self.store else self.folder.with_name(self.folder.name + STORE_ENDING)

    @property
    def eval_place(self) -> str:
        """The folder or URL of the shards for evaluation, if there are any."""
        return self.eval_out or (self.out.rstrip("/") if is_url(self.out) else str(self.folder)) + "-eval"

    @property
    def eval_folder(self) -> Path:
        """The same as `folder`, of the shards for evaluation."""
        return self._folder_of(self.eval_place)

    def _folder_of(self, place: str) -> Path:
        if not is_url(place):
            return Path(at_home(place))
        hashed = hashlib.sha256(place.rstrip("/").encode()).hexdigest()[:8]
        return Path(at_home(self.work or ".")) / f"{shown(place).rpartition('/')[2]}-{hashed}"

    def __post_init__(self) -> None:
        check_fields(self)
        read_transforms(self.transforms or ())
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        if self.eval_folder == self.folder:
            raise ConfigError(f"eval_out and out are both {self.out}; expected two folders")
        for name, place in (("out", self.out), ("eval_out", self.eval_place)):
            if is_url(place) and scheme_of(place) not in WRITABLE_SCHEMES:
                kinds = ", ".join(f"{scheme}://" for scheme in WRITABLE_SCHEMES)
                raise ConfigError(f"{name} {shown(place)}: expected a folder, or a URL that can be written: {kinds}")
        if self.work and not is_url(self.out):
            raise ConfigError(f"work is {self.work}, but out is a folder, {self.out}: expected work beside a URL only")
        if self.memory and (self.engine == "ray" or not self.workers):
            raise ConfigError(
                "memory bounds the processes of engine local: expected that engine, with 1 worker or more"
            )
        unknown = [part for part in self.cost_of if part not in PARTS]
        if unknown:
            raise ConfigError(f"cost_of names {unknown[0]!r}, expected parts of a model: {', '.join(PARTS)}")
        if self.text_overlap >= self.seq_len:
            raise ConfigError(f"text_overlap {self.text_overlap} is not below seq_len {self.seq_len}")
