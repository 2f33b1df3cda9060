"""How records are read: settings of a build, which each source may set for itself."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from lmms.configs.errors import ConfigError
from lmms.configs.settings.transforms import Transform, read_transforms
from lmms.configs.typed import Json, check_fields

Role = Literal["system", "user", "assistant", "tool"]
Targets = Literal["assistant", "last", "all"]
Reasoning = Literal["template", "optional", "masked", "stripped"]
Coords = Literal["norm1000", "absolute"]
TooLong = Literal["reject", "split", "truncate_turns"]
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
    """Name in metrics and tables; by default the path."""
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
        read_transforms(self.transforms or (), "sources.transforms")
        if not isinstance(self.data_folder, str | None):
            raise ConfigError(f"sources.data_folder is {self.data_folder!r}, expected a folder or an empty string")
        if self.media_root is not None and self.data_folder is not None:
            raise ConfigError(f"source {self.path}: media_root and data_folder are one setting; expected one of them")


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
    coords: Coords | None
    """None: as the model's family writes them."""
    transforms: tuple[Transform, ...]


DEFAULT_READING = Reading(
    form=None,
    fields={},
    roles={},
    targets="assistant",
    reasoning="template",
    template_options={},
    too_long="split",
    coords=None,
    transforms=(),
)


def decide_reading(*configs: RecordConfig) -> Reading:
    """The settings of a source: for each the first of `configs` that sets it, else the default."""
    values = {}
    for field in fields(Reading):
        given = (value for config in configs if (value := getattr(config, field.name)) is not None)
        values[field.name] = next(given, getattr(DEFAULT_READING, field.name))
    values["transforms"] = read_transforms(values["transforms"])
    return Reading(**values)
