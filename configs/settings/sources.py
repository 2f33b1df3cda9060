"""How records are read: settings of a build, which each source may set for itself."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from lmms.configs.errors import ConfigError
from lmms.configs.ranges import Range
from lmms.configs.settings.transforms import Transform, read_transforms
from lmms.configs.typed import Json, check_fields

T = TypeVar("T")
_LEAVE_OUT = "to leave a source out, take it from the list"

Role = Literal["system", "user", "assistant", "tool"]
Targets = Literal["assistant", "last", "all"]
Reasoning = Literal["template", "optional", "masked", "stripped"]
Coords = Literal["norm1000", "absolute"]
TooLong = Literal["reject", "split", "truncate_turns"]
SystemMode = Literal["add", "replace", "keep"]
DataType = Literal["json", "jsonl", "arrow", "parquet", "csv"]
FormName = Literal[
    "openai",
    "sharegpt",
    "llava",
    "swift",
    "alpaca",
    "trl",
    "anthropic",
    "llamafactory",
    "veomni",
    "lmms_engine",
    "text",
    "interleaved",
    "objects",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordConfig:
    """How records are read and what is learned of them; null: as the build says, or the default."""

    form: FormName | None = None
    """Form of the records; by default found from the first records of each source, and then held for all of it."""
    fields: Mapping[str, Json] | None = None
    """Columns of the form -> paths in the records, such as {messages: $.data.turns, images: [$.pic]}."""
    roles: Mapping[str, Role] | None = None
    """Role names of the records -> ours, such as {developer: system, observation: tool}."""
    targets: Targets | None = None
    """What is learned: the assistant turns (default), the last of them, or all tokens of all turns but media."""
    reasoning: Reasoning | None = None
    """Think blocks: as the template has them (default), optional to the template, masked in the loss, or stripped."""
    template_options: Mapping[str, Json] | None = None
    """Keywords that the chat template reads, such as {enable_thinking: false}."""
    too_long: TooLong | None = None
    """What becomes of a record longer than a pack: reject; split (default): plain text is cut in pieces, a conversation
    is rejected; truncate_turns: a conversation also loses its last turns, whole exchanges with their answers."""
    system: str | None = None
    """System prompt for conversations."""
    system_mode: SystemMode | None = None
    """Which conversations get the system prompt: those without a system turn (add, the default); all, in place of their
    system turns (replace); none (keep)."""
    filter: str | None = None
    """SQL expression on the columns of a record that is true for the records to take: score > 0.5 AND lang = 'en'."""
    max_records: Annotated[int, Range(1)] | None = None
    """Take the first records only, as many as this, in the order of the files; by default all."""
    eval_share: Annotated[float, Range(0, below=1)] | None = None
    """Share of the records that goes to shards of its own, for evaluation, by a hash of the record; by default none."""
    eval_by: str | None = None
    """Column whose value decides, in place of the record, which records are for evaluation: all or none with one value.
    Also a path, such as $.meta.document."""

    video_fps: Annotated[float, Range(0.001, 1000)] | None = None
    """Frames of a video that the model sees for each second; by default the processor's, 2. A record may say otherwise,
    here and in the settings that follow."""
    video_nframes: Annotated[int, Range(1)] | None = None
    """Frames of a video that the model sees, in place of video_fps."""
    video_min_frames: Annotated[int, Range(1)] | None = None
    """Fewest frames of a video; by default the processor's, 4, or all that the video has."""
    video_max_frames: Annotated[int, Range(1)] | None = None
    """Most frames of a video; by default the processor's, 768."""
    video_min_pixels: Annotated[int, Range(1)] | None = None
    """Smallest area of a frame after the resize, in pixels; by default the processor's."""
    video_max_pixels: Annotated[int, Range(1)] | None = None
    """Largest area of a frame after the resize, in pixels; by default the processor's."""
    video_total_pixels: Annotated[int, Range(1)] | None = None
    """Largest area of all frames of a video together, in pixels; by default the processor's."""
    coords: Coords | None = None
    """How boxes and points are written: norm1000, thousandths of the picture's sides, or absolute, pixels after the
    processor's resize. By default as the model's family was trained: absolute for Qwen2.5-VL, else norm1000."""
    transforms: tuple[Mapping[str, Json], ...] | None = None
    """Changes of the records, in order, such as [{name: hflip, prob: 0.3}, {function: "mine:shorter"}]; see
    docs/records.md."""


NO_RECORD_SETTINGS = RecordConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig(RecordConfig):
    """One source of records, with settings of its own."""

    path: str
    """File, folder or glob; or a YAML file with a list of sources, such as the data set file of LMMs-Engine."""
    name: str | None = None
    """Name in metrics and tables, which no other source has; by default the path."""
    weight: Annotated[float, Range(0.001, 1000, advice=_LEAVE_OUT)] | None = None
    """Weight in the loss: the weight of each record is multiplied by this; by default 1."""
    repeat: Annotated[float, Range(0.001, 1000, advice=_LEAVE_OUT)] | None = None
    """How often each record is packed; with 2.5 twice, and half of the records, by seed, a third time. Default 1."""
    min_pixels: Annotated[int, Range(1)] | None = None
    """Smallest image area after the resize, in pixels; by default the build's."""
    max_pixels: Annotated[int, Range(1)] | None = None
    """Largest image area after the resize, in pixels; by default the build's."""
    media_root: tuple[str, ...] | str | None = None
    """Folder that image paths are relative to and may not leave, or several, as [A, B]; by default the build's."""
    data_folder: Json | None = None
    """LMMs-Engine's name for media_root; there an empty string is the working directory."""
    data_type: DataType | None = None
    """LMMs-Engine's name for the kind of file, which lmms takes from the ending; a file of another kind is an error."""

    @property
    def own_root(self) -> tuple[str, ...] | str | None:
        """The media root that the source has of its own, under either name."""
        return self.media_root if self.data_folder is None else str(self.data_folder) or "."

    def __post_init__(self) -> None:
        check_fields(self, "sources")
        read_transforms(self.transforms or (), f"{self.name or self.path}: transforms")
        if not isinstance(self.data_folder, str | None):
            raise ConfigError(f"sources.data_folder is {self.data_folder!r}, expected a folder or an empty string")
        if self.media_root is not None and self.data_folder is not None:
            raise ConfigError(f"source {self.path}: media_root and data_folder are one setting; expected one of them")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ConfigError(f"source {self.path}: min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")

    @property
    def given(self) -> dict[str, Any]:
        """The settings that the source has of its own, as plain values; two sources with equal ones are read alike."""
        return {name: value for name, value in asdict(self).items() if name != "path" and value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How the records of one source are read, with every setting decided."""

    form: FormName | None
    """None: not decided yet; then records are read as OpenAI's."""
    fields: Mapping[str, Json]
    roles: Mapping[str, Role]
    targets: Targets
    reasoning: Reasoning
    template_options: Mapping[str, Json]
    too_long: TooLong
    coords: Coords | None = None
    """None: as the model's family writes them."""
    transforms: tuple[Transform, ...] = ()
    system: str | None = None
    system_mode: SystemMode = "add"
    weight: float = 1.0
    """Factor of the weights of the records."""
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Limits of a picture's area in pixels; None: the processor's."""
    video_fps: float | None = None
    video_nframes: int | None = None
    video_min_frames: int | None = None
    video_max_frames: int | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    video_total_pixels: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Which records of one source are taken, how often and for what, with every setting decided."""

    filter: str | None = None
    max_records: int | None = None
    repeat: float = 1.0
    eval_share: float = 0.0
    eval_by: str | None = None
    seed: int = 0


DEFAULT_READING = Reading(
    form=None, fields={}, roles={}, targets="assistant", reasoning="template", template_options={}, too_long="split"
)
DEFAULT_CHOICE = Choice()


def decide_reading(*configs: RecordConfig) -> Reading:
    """The settings of a source: for each the first of `configs` that sets it, else the default."""
    reading = _decided(DEFAULT_READING, configs)
    mode = configs[0].system_mode if configs else None
    if mode == "keep" and configs[0].system is not None:
        raise ConfigError("system_mode is keep, so system would not be used; leave one of the two out")
    if mode not in (None, "keep") and reading.system is None:
        raise ConfigError(f"system_mode is {mode}, but there is no system prompt; expected system beside it")
    return reading


def decide_choice(*configs: RecordConfig) -> Choice:
    """The same for the choice of records."""
    choice = _decided(DEFAULT_CHOICE, configs)
    if configs and configs[0].eval_by and not choice.eval_share:
        raise ConfigError(f"eval_by is {configs[0].eval_by}, but eval_share is not set; expected a share such as 0.01")
    return choice


def _decided(default: T, configs: Sequence[RecordConfig]) -> T:
    values = {}
    for field in fields(default):  # type: ignore[arg-type]
        given = (value for config in configs if (value := getattr(config, field.name, None)) is not None)
        values[field.name] = next(given, getattr(default, field.name))
    if "transforms" in values:
        values["transforms"] = read_transforms(values["transforms"])
    return type(default)(**values)
