"""What transforms of records may be told: a frozen dataclass for each name, and the table of the names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from lmms.configs.errors import ConfigError, nearest
from lmms.configs.ranges import Range
from lmms.configs.typed import Json, build, check, missing_keys

Chance = Annotated[float, Range(0, 1)]
Factor = Annotated[float, Range(0.1, 10)]
Part = Annotated[float, Range(0, 1)]
Level = Annotated[int, Range(0, 255)]
Colour: TypeAlias = tuple[Level, Level, Level]
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variants:
    """The record several times; the transforms behind this one draw for each copy anew."""

    count: Annotated[int, Range(1, 1024)]
    """Copies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompts:
    """One of several texts in place of the first question, or of the system prompt."""

    choices: tuple[str, ...]
    """The texts; each record draws one."""
    turn: Literal["user", "system"] = "user"
    """Which turn gets the text; its pictures stay before the text. A system turn is added where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A column of the record in place of the last answer, in a share of the records."""

    ratio: Chance
    """Share of the records whose answer becomes the summary."""
    prompts: tuple[str, ...] | None = None
    """Texts for the first question of such a record, which draws one; by default its question stays."""
    column: str = "summary"
    """The column; every record needs a text there, unless ratio is 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """Neighbouring records of one picture as one conversation: all pictures in one user turn, one answer about all."""

    images: Annotated[int, Range(2, 1024)]
    """Pictures of a user turn; the last group of a chunk of rows may have fewer."""
    label: str = "image_{n}"
    """Key of each picture's answer in the JSON of all; {n} is the picture's number in the turn, from 1."""

    def __post_init__(self) -> None:
        if "{n}" not in self.label:
            raise ConfigError(f"join: label is {self.label!r}, expected a text with {{n}}, such as image_{{n}}")


@dataclass(frozen=True, kw_only=True, slots=True)
class HorizontalFlip:
    """Left and right change places."""

    prob: Chance = 0.5
    """Share of the pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerticalFlip:
    """Top and bottom change places."""

    prob: Chance = 0.5
    """Share of the pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rotate:
    """A turn of the whole picture, on a canvas that holds all of it."""

    max_deg: Annotated[float, Range(0, 180)] | None = None
    """The angle lies between minus and plus this many degrees."""
    angles: tuple[Annotated[float, Range(-360, 360)], ...] | None = None
    """Angles to choose from, in degrees clockwise, such as [90, 180, 270]; in place of max_deg."""
    prob: Chance = 0.5
    """Share of the pictures."""
    fill: Colour = WHITE
    """Red, green and blue of the corners."""

    def __post_init__(self) -> None:
        if (self.max_deg is None) == (not self.angles):
            raise ConfigError("expected one of max_deg and angles")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Another size of the whole picture."""

    lo: Factor
    """Least factor."""
    hi: Factor
    """Largest factor."""
    prob: Chance = 0.5
    """Share of the pictures."""

    def __post_init__(self) -> None:
        if self.lo > self.hi:
            raise ConfigError(f"lo {self.lo} is above hi {self.hi}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ColorJitter:
    """Another brightness, contrast and saturation; each a factor between two limits."""

    brightness: tuple[Factor, Factor] = (1.0, 1.0)
    contrast: tuple[Factor, Factor] = (1.0, 1.0)
    saturation: tuple[Factor, Factor] = (1.0, 1.0)
    prob: Chance = 0.5
    """Share of the pictures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pad:
    """A margin on each side of the picture, each of a drawn width."""

    most: Part
    """Widest margin, as a share of the picture's width or height."""
    prob: Chance = 0.5
    """Share of the pictures."""
    fill: Colour = WHITE
    """Red, green and blue of the margin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PadToMultiple:
    """A margin at the right and at the bottom, up to the next multiple."""

    multiple: Annotated[int, Range(1, 1024)]
    """Width and height become multiples of this many pixels."""
    fill: Colour = WHITE
    """Red, green and blue of the margin."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A function of the user's: (Record, Draws, options) -> a Record, or a list of them."""

    function: str
    """module:function, from an installed package or from the working directory."""
    columns: tuple[str, ...] = ()
    """Columns of the record that Record.columns shall hold."""
    options: Mapping[str, Json] = field(default_factory=dict)
    """Keywords for the function."""


Transform: TypeAlias = (
    Variants
    | Prompts
    | Summary
    | Join
    | HorizontalFlip
    | VerticalFlip
    | Rotate
    | Scale
    | ColorJitter
    | Pad
    | PadToMultiple
    | Function
)

TRANSFORM_NAMES: Mapping[str, type[Transform]] = {
    "variants": Variants,
    "prompts": Prompts,
    "summary": Summary,
    "join": Join,
    "hflip": HorizontalFlip,
    "vflip": VerticalFlip,
    "rotate": Rotate,
    "scale": Scale,
    "color_jitter": ColorJitter,
    "pad": Pad,
    "pad_to_multiple": PadToMultiple,
}
"""Name in the settings -> settings. A Function has the key `function` in place of a name."""


AUGMENTATIONS: tuple[type[Transform], ...] = (
    Variants,
    HorizontalFlip,
    VerticalFlip,
    Rotate,
    Scale,
    ColorJitter,
    Pad,
)
"""Transforms that make more of the training records, and leave records for evaluation as they are."""


def name_of_transform(transform: Transform) -> str:
    """The name in the settings; of a function of the user's module:function."""
    if isinstance(transform, Function):
        return transform.function
    return next(name for name, kind in TRANSFORM_NAMES.items() if kind is type(transform))


def read_transforms(entries: Sequence[Mapping[str, Any]], key: str = "transforms") -> tuple[Transform, ...]:
    """The transforms of a list such as [{name: hflip, prob: 0.3}, {function: "mine:shorter"}].

    ConfigError for an unknown name or option, or a value of a wrong type.
    """
    transforms = tuple(_transform(entry, f"{key}[{i}]") for i, entry in enumerate(entries))
    if sum(isinstance(step, Join) for step in transforms) > 1:
        raise ConfigError(f"{key}: join stands twice; expected it once")
    return transforms


def columns_of(transforms: Sequence[Transform]) -> tuple[str, ...]:
    """The columns of a record that transforms read."""
    summaries = [step.column for step in transforms if isinstance(step, Summary)]
    asked = [column for step in transforms if isinstance(step, Function) for column in step.columns]
    return tuple(dict.fromkeys((*summaries, *asked)))


def _transform(entry: Mapping[str, Any], place: str) -> Transform:
    if ("name" in entry) == ("function" in entry):
        raise ConfigError(f"{place} has the keys {', '.join(entry) or 'none'}; expected `name` or `function`")
    name = entry.get("name", "function")
    if name not in TRANSFORM_NAMES and "function" not in entry:
        raise ConfigError(f"{place}: no transform {name!r}{nearest(str(name), TRANSFORM_NAMES)}")
    kind = TRANSFORM_NAMES.get(name, Function)
    options = {option: value for option, value in entry.items() if option != "name"}
    checked = check(kind, options, "", f"{place} ({name})")
    if missing := list(missing_keys(kind, checked, "")):
        raise ConfigError(f"{place} ({name}): required but not set: {', '.join(missing)}")
    try:
        made: Transform = build(kind, checked)
    except ConfigError as error:
        raise ConfigError(f"{place} ({name}): {error}") from None
    return made
