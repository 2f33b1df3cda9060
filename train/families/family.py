"""What differs from one family of models to the next, as one frozen value.

Two kinds of code read this value. Loader processes lay out batches by it (positions, images), without a model. The
trainer builds a model by it and finds the model's modules: by their names in transformers and by patterns of names.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from lmms.configs.by_part import Part
from lmms.configs.contract.pack import Media
from lmms.configs.errors import ModelError

if TYPE_CHECKING:
    # Slow to load, and of no use to loader processes.
    from transformers import PretrainedConfig, PreTrainedModel

TowerInputs = dict[str, Tensor | int]
"""Keyword arguments of a vision tower's forward."""

Point = tuple[int, int]
"""Point of a computation in the forward pass of its part: (block, stage in the block)."""

_BEHIND = 10**9
FIRST: Point = (-1, 0)
NEVER: Point = (_BEHIND + 1, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelPart:
    """One part of a model: its modules, and the order in which a forward pass uses them.

    Patterns are regular expressions, searched for in names; of several patterns, the first that matches holds.
    """

    name: Part
    modules: tuple[str, ...]
    """The modules that are this part, with all below them, except what a deeper module of another part has."""
    feeds: str | None
    """The first of the modules of the part that reads the output of this part; None for the last part."""
    blocks: str = ""
    """The list of repeated blocks, in the first of `modules`; empty for a part without blocks."""
    attention: str = ""
    """End of the name of the layer that reads the output of attention, in blocks that have such a layer."""
    before: tuple[str, ...] = ()
    """Patterns of what reads the part's input, before the blocks, one after the other."""
    stages: tuple[str, ...] = ()
    """Patterns of what a block does one after the other; attention comes right before the layer `attention`."""
    behind: tuple[str, ...] = ()
    """Patterns of what comes after the blocks, one after the other."""

    def point(self, name: str) -> Point:
        """The point of a module or parameter of this part. ModelError for a name that no pattern knows."""
        if self.blocks and (in_block := re.search(rf"\b{self.blocks}\.(\d+)\.(.+)", name)):
            block, inner = int(in_block[1]), in_block[2]
        elif any(re.search(pattern, name) for pattern in self.before):
            block, inner = FIRST[0], name
        else:
            block, inner = _BEHIND, name
        patterns = {FIRST[0]: self.before, _BEHIND: self.behind}.get(block, self.stages)
        stage = next((i for i, pattern in enumerate(patterns) if re.search(pattern, inner)), None)
        if stage is None:
            raise ModelError(f"{name}: this transformers has a layer that lmms does not know in the part {self.name}")
        return block, stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Tower:
    """What a tower's inputs depend on, besides the grids."""

    patch_size: int
    merge_size: int
    window_size: int = 0
    """Side of an attention window, in pixels."""
    windowed: tuple[int, ...] = ()
    """The blocks that attend within windows; the others attend over whole images."""
    position_side: int = 0
    """Side of the learned square of positions that is stretched over each image."""
    tokens_per_second: int | None = None
    """Positions of a second of video; None: a row of frames takes a position, whatever its time."""
    time_takes_room: bool = False
    """Whether what follows a video goes on behind the time of its last row, too, and not behind its sides alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Images:
    """How a family's vision tower takes images."""

    tower: Callable[["PretrainedConfig"], Tower]
    inputs: Callable[[Tensor, Tower], TowerInputs]
    """(grids int64 [images, 3], tower) to the tower's keyword arguments besides pixels."""
    features: Callable[[Any], list[Tensor]]
    """The tower's output to tensors [image tokens, hidden]: the first fills the rows of images, the others are for
    deep_inputs."""
    deep_inputs: Callable[[Tensor, list[Tensor]], dict[str, object]] | None = None
    """(rows int64 [image tokens], other features) to keyword arguments of the language model; None without others."""
    fixed_inputs: Callable[[TowerInputs, int, Tower, int], TowerInputs] | None = None
    """(inputs of so many patches, patches, tower, most images) to the inputs that need another form in padded batches,
    which have few shapes; None where only the boundaries of images need another form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sounds:
    """How a family's audio tower takes sounds."""

    features: Callable[["PreTrainedModel", Tensor, TowerInputs], Tensor]
    """(model, mel frames float32 [chunks, mel bins, frames], inputs of batch.sounds) to [sound tokens, hidden]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """All that the trainer knows of a family."""

    auto_class: str
    """Class of transformers that builds a model from its config."""
    parts: tuple[ModelPart, ...]
    """The parts in the order of the forward pass, the language model last; parts with blocks before it are towers."""
    positions: Callable[[npt.NDArray[np.int64], Sequence[Media], "Tower | None"], npt.NDArray[np.int64]]
    """(cu_seqlens int64 [segments + 1], media, tower) to the position ids of T tokens, int64 [..., 1, T]."""
    images: Images | None = None
    """None where the models see nothing."""
    sounds: Sounds | None = None
    """None where the models hear nothing."""
    replacements: tuple[Callable[[Any], None], ...] = ()
    """Functions that replace code of transformers in a new model, so that a step never waits for the device."""
    fixed: tuple[str, ...] = ()
    """Parameters that are never trained, since transformers does not train or use them."""
    beside: tuple[str, ...] = ()
    """First words of the names of weights in a folder that belong to models which are not trained."""
    stacked: Mapping[str, int] = field(default_factory=dict)
    """Layers whose weight is several matrices, one below the other: last word of their name -> how many."""

    def part_of(self, name: str) -> ModelPart:
        """The part of a module or parameter, by its name in the transformers model. ModelError where no part has it."""
        matches = [(len(top), part) for part in self.parts for top in part.modules if f"{name}.".startswith(f"{top}.")]
        if not matches:
            tops = ", ".join(top for part in self.parts for top in part.modules)
            raise ModelError(f"{name} belongs to no part of the model; expected a name below {tops}")
        return max(matches, key=lambda match: match[0])[1]

    def language_model(self, hf: "PreTrainedModel") -> "PreTrainedModel":
        """The part of a transformers model that reads embeddings and has the blocks of the language model."""
        return cast("PreTrainedModel", hf.get_submodule(self.parts[-1].modules[0]))

    def towers(self, hf: "PreTrainedModel") -> list[tuple[Part, nn.Module]]:
        """The towers of a transformers model, by their parts."""
        return [(part.name, hf.get_submodule(part.modules[0])) for part in self.parts[:-1] if part.blocks]

    def blocks(self, hf: "PreTrainedModel") -> list[tuple[Part, nn.Module]]:
        """The repeated blocks of a transformers model in forward order, by their parts."""
        return [
            (part.name, block)
            for part in self.parts
            if part.blocks
            for block in hf.get_submodule(f"{part.modules[0]}.{part.blocks}").children()
        ]
