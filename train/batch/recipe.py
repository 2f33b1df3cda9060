"""What making a batch needs to know of the shards and of the model, as plain values: it is sent to loader processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from transformers import PretrainedConfig

from lmms.configs.contract.check import PackLimits
from lmms.configs.contract.families import trained_as
from lmms.configs.contract.loss_rule import LossWeight
from lmms.configs.contract.manifest import Manifest
from lmms.configs.contract.media.geometry import Vision
from lmms.configs.contract.pack import Pack
from lmms.configs.errors import ModelError
from lmms.configs.settings.data import OnBadMedia
from lmms.configs.words import short_places
from lmms.train.batch.shapes import Shapes
from lmms.train.data.shards import Place
from lmms.train.families import family_of
from lmms.train.families.family import Tower
from lmms.train.parallel.share import WHOLE, Share

By = Literal["set", "source"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SetRecipe:
    """One set of shards. Sets of one run may differ in the smallest and largest image area, and in their limits."""

    vision: Vision | None
    limits: PackLimits
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All sets of a run, and the model."""

    family: str
    sets: tuple[SetRecipe, ...]
    tower: Tower | None
    vocab_size: int
    on_bad_media: OnBadMedia
    loss_weight: LossWeight = "token"
    by: By = "set"
    """What the loss is split by: sets of shards, or the sources of all sets, one set after the other."""
    share: Share = WHOLE
    """The part of every batch that this rank trains on."""
    shapes: Shapes | None = None
    """What batches are padded to; None where blocks are not compiled."""

    @property
    def num_groups(self) -> int:
        """Number of sets or sources."""
        return len(self.sets) if self.by == "set" else sum(len(set_recipe.sources) for set_recipe in self.sets)

    @property
    def group_names(self) -> tuple[str, ...]:
        """[num_groups]: short names of sources, see short_places; with the set where there are several sets."""
        names = [f"set {k}" for k in range(len(self.sets))]
        if self.by == "set":
            return tuple(names)
        several = len(self.sets) > 1
        return tuple(
            f"{name}, {source}" if several else source
            for name, set_recipe in zip(names, self.sets, strict=True)
            for source in short_places(set_recipe.sources)
        )

    @property
    def group_sets(self) -> npt.NDArray[np.int64]:
        """int64 [num_groups]: the set of each group."""
        counts = [1 if self.by == "set" else len(set_recipe.sources) for set_recipe in self.sets]
        return np.repeat(np.arange(len(counts)), counts)

    def groups(self, pack: Pack, place: Place) -> npt.NDArray[np.int64]:
        """int64 [segments]: the group of each conversation of a pack."""
        if self.by == "set":
            return np.full(len(pack.samples), place.set)
        return pack.samples[:, 0] + sum(len(set_recipe.sources) for set_recipe in self.sets[: place.set])

    def name(self, place: Place) -> str:
        """The name of a pack in errors."""
        return f"set {place.set}, pack {place.pack}" if len(self.sets) > 1 else f"pack {place.pack}"


def make_recipe(
    manifests: Sequence[Manifest],
    hf_config: PretrainedConfig,
    on_bad_media: OnBadMedia,
    by: By = "set",
    share: Share = WHOLE,
    loss_weight: LossWeight = "token",
) -> Recipe:
    """The recipe for sets of shards and a model. ModelError for a set that does not fit the model or the first set."""
    for number, manifest in enumerate(manifests):
        _check_fit("model_type", trained_as(manifest.family), trained_as(hf_config.model_type))
        if manifest.vision:
            _check_vision(manifest, manifest.vision, hf_config)
            _check_same_pixels(number, manifest.vision, manifests[0].vision)
        if manifest.audio:
            _check_fit("audio_token_id", manifest.audio_token_id, hf_config.audio_token_id)
            _check_fit("num_mel_bins", manifest.audio.mel_bins, hf_config.audio_config.num_mel_bins)
    images = family_of(hf_config.model_type).images if manifests[0].vision else None
    return Recipe(
        family=manifests[0].family,
        sets=tuple(
            SetRecipe(
                vision=manifest.vision,
                limits=manifest.limits,
                sources=tuple(source["name"] for source in manifest.sources),
            )
            for manifest in manifests
        ),
        tower=images.tower(hf_config) if images else None,
        vocab_size=hf_config.get_text_config().vocab_size,
        on_bad_media=on_bad_media,
        loss_weight=loss_weight,
        by=by,
        share=share,
    )


def loss_by_group(recipe: Recipe, groups: npt.NDArray[np.float64]) -> dict[str, float]:
    """Name -> loss of each group that has weight. groups: [num_groups, 2], sums of weighted losses and of weights."""
    sums = zip(recipe.group_names, groups.tolist(), strict=True)
    return {name: loss / weight for name, (loss, weight) in sums if weight}


def _check_vision(manifest: Manifest, vision: Vision, hf_config: PretrainedConfig) -> None:
    config = hf_config.vision_config
    _check_fit("image_token_id", manifest.image_token_id, hf_config.image_token_id)
    if manifest.video_token_id is not None:
        _check_fit("video_token_id", manifest.video_token_id, hf_config.video_token_id)
    _check_fit("patch_size", vision.patch_size, config.patch_size)
    _check_fit("spatial_merge_size", vision.merge_size, config.spatial_merge_size)
    _check_fit("temporal_patch_size", vision.temporal_patch_size, config.temporal_patch_size)


def _check_fit(name: str, shards: object, model: object) -> None:
    if shards != model:
        raise ModelError(f"{name} is {shards!r} in the shards, {model!r} in the model; build the shards for this model")


def _check_same_pixels(number: int, vision: Vision, first: Vision | None) -> None:
    """The images of a batch are normalised together, whatever their sets."""
    for name in ("image_mean", "image_std"):
        value, expected = getattr(vision, name), getattr(first, name, None)
        if value != expected:
            raise ModelError(f"{name} is {value} in set {number}, {expected} in set 0; build all sets for one model")
