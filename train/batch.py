"""Packs -> one sequence with everything that a forward pass needs to know, made on the CPU while packs are loaded.

Several packs become one longer sequence: to the model a pack is nothing, a conversation is all. So one micro-step of
four packs equals four of one. Nothing here is measured on the device, so a step never waits for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PretrainedConfig

from lmms.configs.check import PackLimits, check_pack
from lmms.configs.contract import Pack, join_packs
from lmms.configs.errors import DatasetError, ModelError, TrainError
from lmms.configs.geometry import Vision
from lmms.configs.manifest import Manifest
from lmms.train.families import text, vision
from lmms.train.families.vision import Tower
from lmms.train.pictures import Pictures, make_pictures
from lmms.train.pixels import BadMediaError, image_patches

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What make_batch needs to know of the shards and of the model. Plain values: it is sent to loader processes."""

    family: str
    vision: Vision | None
    tower: Tower | None
    limits: PackLimits
    vocab_size: int
    sources: tuple[str, ...]
    on_bad_media: Literal["stop", "mask"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One or more packs as one sequence of T tokens in S conversations, with R targets."""

    input_ids: Tensor
    """int64 [1, T]"""
    position_ids: Tensor
    """int64 [1, T] of text models, [3, 1, T] of vision models; from 0 in every conversation."""
    cu_seqlens: Tensor
    """int32 [S + 1]"""
    max_length: int
    """Tokens of the longest conversation."""
    target_rows: Tensor
    """int64 [R]: the rows whose hidden states predict the targets, each the row before its target."""
    labels: Tensor
    """int64 [R]"""
    weights: Tensor
    """float32 [R]; 0 in conversations that were masked."""
    vision: Pictures | None
    """None for text models only."""
    images: int
    packs: tuple[int, ...]
    tokens: int
    target_tokens: int
    masked: tuple[str, ...]
    """One sentence for each conversation that is trained with weight 0, since an image of it failed."""

    def to(self, device: torch.device, non_blocking: bool = True) -> "Batch":
        """The same batch with its tensors on this device."""
        return _map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in memory from which copies to a GPU do not wait. The name is the one that loaders call."""
        return _map_tensors(self, Tensor.pin_memory)


def make_recipe(manifest: Manifest, hf_config: PretrainedConfig, on_bad_media: Literal["stop", "mask"]) -> Recipe:
    """The recipe for shards and a model. ModelError where the two do not fit."""
    _check_fit("model_type", manifest.family, hf_config.model_type)
    return Recipe(
        family=manifest.family,
        vision=manifest.vision,
        tower=_tower(manifest, hf_config) if manifest.vision else None,
        limits=manifest.limits,
        vocab_size=hf_config.get_text_config().vocab_size,
        sources=tuple(source["name"] for source in manifest.sources),
        on_bad_media=on_bad_media,
    )


def make_batch(packs: Sequence[Pack], recipe: Recipe, ids: Sequence[int] | None = None) -> Batch:
    """Decode the images of these packs and lay them out for one forward pass. `ids` names them in errors.

    Raises DatasetError for a pack that breaks the contract, such as image tokens that its media do not cover, and
    TrainError for an image that fails, unless the recipe masks its conversation.
    """
    names = tuple(range(len(packs)) if ids is None else ids)
    for pack, name in zip(packs, names, strict=True):
        _check_pack(pack, name, recipe)
    joined = join_packs(packs)
    cu_seqlens = joined.cu_seqlens.astype(np.int64)
    targets = np.concatenate([np.arange(start, end) for start, end in joined.targets.tolist()])
    weights = np.repeat(joined.target_weights, np.diff(joined.targets)[:, 0])
    pictures, masked = None, dict[int, str]()
    if recipe.vision is None:
        position_ids = text.positions(cu_seqlens)
    else:
        position_ids = vision.positions(cu_seqlens, joined.media, recipe.vision.merge_size)
        patches, masked = _decode(packs, names, recipe)
        assert recipe.tower is not None
        pictures = make_pictures(recipe.family, joined.media, patches, recipe.vision, recipe.tower)
        weights[np.isin(np.searchsorted(cu_seqlens, targets, side="right") - 1, list(masked))] = 0
    return Batch(
        input_ids=_tensor(joined.input_ids, torch.int64)[None],
        position_ids=_tensor(position_ids, torch.int64),
        cu_seqlens=_tensor(cu_seqlens, torch.int32),
        max_length=int(joined.lengths.max()),
        target_rows=_tensor(targets - 1, torch.int64),
        labels=_tensor(joined.input_ids[targets], torch.int64),
        weights=_tensor(weights, torch.float32),
        vision=pictures,
        images=len(joined.media),
        packs=names,
        tokens=len(joined.input_ids),
        target_tokens=len(targets),
        masked=tuple(masked.values()),
    )


def _check_pack(pack: Pack, name: int, recipe: Recipe) -> None:
    faults = check_pack(pack, recipe.limits)
    faults += [f"media of kind {m.kind!r}, this lmms trains on images" for m in pack.media if m.kind != "image"]
    if int(pack.input_ids.max()) >= recipe.vocab_size or int(pack.input_ids.min()) < 0:
        faults.append(f"a token id is outside the model's vocabulary of {recipe.vocab_size}")
    if faults:
        raise DatasetError(f"pack {name} cannot be used: {'; '.join(faults)}; rebuild the shards")


def _decode(
    packs: Sequence[Pack], names: Sequence[int], recipe: Recipe
) -> tuple[list[npt.NDArray[np.uint8]], dict[int, str]]:
    """The patches of each image, and for each conversation of the joined packs that is to be masked, why."""
    assert recipe.vision is not None
    patches, masked = [], dict[int, str]()
    first_segment = 0
    for pack, name in zip(packs, names, strict=True):
        for m, data in zip(pack.media, pack.media_data(), strict=True):
            try:
                patches.append(image_patches(data, m, recipe.vision))
            except BadMediaError as error:
                segment = pack.segment_of(m.start)
                source, row = pack.samples[segment].tolist()
                fault = f"pack {name}, segment {segment}: {recipe.sources[source]} row {row}: {error}"
                if recipe.on_bad_media == "stop":
                    raise TrainError(
                        f"{fault}; set data.on_bad_media: mask to train without such conversations"
                    ) from error
                masked.setdefault(first_segment + segment, fault)
                patches.append(np.zeros((np.prod(m.grid_thw), 3 * recipe.vision.patch_size**2), np.uint8))
        first_segment += len(pack.lengths)
    return patches, masked


def _tower(manifest: Manifest, hf_config: PretrainedConfig) -> Tower:
    config, found = hf_config.vision_config, manifest.vision
    assert found is not None
    _check_fit("image_token_id", manifest.image_token_id, hf_config.image_token_id)
    _check_fit("patch_size", found.patch_size, config.patch_size)
    _check_fit("spatial_merge_size", found.merge_size, config.spatial_merge_size)
    _check_fit("temporal_patch_size", found.temporal_patch_size, config.temporal_patch_size)
    return Tower(
        patch_size=config.patch_size,
        merge_size=config.spatial_merge_size,
        window_size=getattr(config, "window_size", 0),
        position_side=int(getattr(config, "num_position_embeddings", 0) ** 0.5),
    )


def _check_fit(name: str, shards: object, model: object) -> None:
    if shards != model:
        raise ModelError(f"{name} is {shards!r} in the shards, {model!r} in the model; build the shards for this model")


def _tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)


def _map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same nest of dataclasses and dicts, each tensor put through `function`."""
    result: Any = value
    if isinstance(value, Tensor):
        result = function(value)
    elif isinstance(value, dict):
        result = {key: _map_tensors(entry, function) for key, entry in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        result = replace(value, **{f.name: _map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return cast(T, result)
