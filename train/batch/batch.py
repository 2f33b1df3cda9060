"""Packs -> one sequence with everything that a forward pass needs to know, made on the CPU while packs are loaded.

Several packs become one longer sequence: the model knows conversations, not packs. So one micro-step of four packs
equals four micro-steps of one pack. Nothing here is measured on the device, so a step never waits for the device.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.configs.contract.check import check_pack
from lmms.configs.contract.families import FAMILIES
from lmms.configs.contract.loss_weight import span_weights
from lmms.configs.contract.pack import Media, Pack, join_packs
from lmms.configs.errors import DatasetError, TrainError
from lmms.train.batch.frames import row_patches
from lmms.train.batch.images import BadMediaError, image_patches
from lmms.train.batch.mel import mel_frames, sound_frames
from lmms.train.batch.recipe import Recipe, SetRecipe
from lmms.train.batch.sounds import Sounds, make_sounds
from lmms.train.batch.vision import Pictures, make_pictures
from lmms.train.data.sets import packs_digest
from lmms.train.data.shards import Place
from lmms.train.families import family_of
from lmms.train.parallel.share import WHOLE, Share, image_sizes, share_media, sound_sizes

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One pack or more as one sequence of T tokens in S conversations, with R targets; or a rank's share of these."""

    input_ids: Tensor
    """int64 [1, T]"""
    position_ids: Tensor
    """int64 [1, T] of text models, [3, 1, T] of vision models; from 0 in every conversation."""
    cu_seqlens: Tensor
    """int32 [S + 1]: where conversations begin in the whole sequence, and its end."""
    max_length: int
    """Tokens of the longest conversation."""
    target_rows: Tensor
    """int64 [R]: the rows whose hidden states predict the targets, each the row before its target."""
    labels: Tensor
    """int64 [R]"""
    weights: Tensor
    """float32 [R]; 0 in conversations that were masked, and in a pass that does not count."""
    weight: float
    """Sum of `weights`."""
    groups: Tensor
    """int64 [R]: which of the recipe's groups each target belongs to."""
    num_groups: int
    vision: Pictures | None
    """None for models that see nothing."""
    images: int
    sounds: Sounds | None
    """None for models that hear nothing."""
    num_sounds: int
    packs: tuple[str, ...]
    """Names of the packs, for errors."""
    digest: int
    """Sum modulo 2**64 of the mixed hashes of the packs' bytes, see sets.packs_digest; 0 if the pass does not count."""
    masked: tuple[str, ...]
    """One sentence for each conversation that is trained with weight 0, since one of its media failed."""
    share: Share
    """Which part of the sequence this is. What counts once for all parts (digest, masked) is in the first part."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch with its tensors on this device."""
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in memory from which copies to a GPU do not wait."""
        return map_tensors(self, Tensor.pin_memory)


def make_batch(packs: Sequence[Pack], recipe: Recipe, places: Sequence[Place], counts: bool = True) -> Batch:
    """Decode the media of these packs and lay them out for one forward pass.

    places: where the packs were read. counts: false for a pass that only keeps a rank in step with the others: all its
    targets weigh 0.
    Raises DatasetError for a pack that breaks the contract, such as image tokens that its media do not cover, and
    TrainError for an image or sound that fails, unless the recipe masks its conversation.
    The result is the recipe's share of the sequence. Only media of this share are decoded, unless failing media are
    masked: every rank must know of failing media.
    """
    for pack, place in zip(packs, places, strict=True):
        _check_pack(pack, place, recipe)
    joined = join_packs(packs)
    cu_seqlens = joined.cu_seqlens.astype(np.int64)
    targets = np.concatenate([np.arange(start, end) for start, end in joined.targets.tolist()])
    segments = np.searchsorted(cu_seqlens, targets, side="right") - 1
    # Each weight is rounded to float32 once: the sum of the weights is the sidecar's to 1e-7.
    weights = np.repeat(span_weights(joined, recipe.loss_weight), np.diff(joined.targets)[:, 0]).astype(np.float32)
    groups = np.concatenate([recipe.groups(pack, place) for pack, place in zip(packs, places, strict=True)])
    tokens, images, sounds = len(joined.input_ids), image_sizes(joined.media), sound_sizes(joined.media)
    position_ids = family_of(recipe.family).positions(cu_seqlens, joined.media, recipe.tower)
    rank_media = {i for sizes in (images, sounds) for i in share_media(sizes, recipe.share.ranks)[recipe.share.index]}
    decoded, masked = _decode(packs, places, recipe, rank_media)
    hears = recipe.sets[0].limits.audio is not None
    weights[np.isin(segments, list(masked))] = 0
    weights *= counts
    whole = Batch(
        input_ids=_tensor(joined.input_ids, torch.int64)[None],
        position_ids=_tensor(position_ids, torch.int64),
        cu_seqlens=_tensor(cu_seqlens, torch.int32),
        max_length=int(joined.lengths.max()),
        target_rows=_tensor(targets - 1, torch.int64),
        labels=_tensor(joined.input_ids[targets], torch.int64),
        weights=_tensor(weights, torch.float32),
        weight=float(weights.sum(dtype=np.float64)),
        groups=_tensor(groups[segments], torch.int64),
        num_groups=recipe.num_groups,
        vision=make_pictures(recipe, joined.media, decoded, tokens) if recipe.tower else None,
        images=len(images),
        sounds=make_sounds(recipe, joined.media, decoded, tokens) if hears else None,
        num_sounds=len(sounds),
        packs=tuple(map(recipe.name, places)),
        digest=packs_digest(np.array([place.xxh3 for place in places], np.uint64)) * counts,
        masked=tuple(masked.values()) if counts else (),
        share=WHOLE,
    )
    return _take_share(whole, recipe.share) if recipe.share != WHOLE else whole


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """The same nest of dataclasses and dicts, each tensor put through `function`."""
    result: Any = value
    if isinstance(value, Tensor):
        result = function(value)
    elif isinstance(value, dict):
        result = {key: map_tensors(entry, function) for key, entry in value.items()}
    elif is_dataclass(value) and not isinstance(value, type):
        result = replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return cast(T, result)


def _check_pack(pack: Pack, place: Place, recipe: Recipe) -> None:
    set_recipe = recipe.sets[place.set]
    faults = check_pack(pack, set_recipe.limits)
    kinds = FAMILIES[recipe.family].placeholders
    # check_pack reports media in packs of a text model.
    unread = [m.kind for m in pack.media if kinds and m.kind not in kinds]
    faults += [f"media of kind {kind!r}, this lmms trains on {', '.join(kinds)}s" for kind in unread]
    if int(pack.input_ids.max()) >= recipe.vocab_size or int(pack.input_ids.min()) < 0:
        faults.append(f"a token id is outside the model's vocabulary of {recipe.vocab_size}")
    if int(pack.samples[:, 0].max()) >= len(set_recipe.sources) or int(pack.samples[:, 0].min()) < 0:
        faults.append(f"a conversation is of a source outside the manifest's {len(set_recipe.sources)}")
    if faults:
        raise DatasetError(f"{recipe.name(place)} cannot be used: {'; '.join(faults)}; rebuild the shards")


def _take_share(whole: Batch, share: Share) -> Batch:
    """One rank's tokens of a batch that has only this rank's pictures already.

    Where ranks do not divide the tokens, one more conversation, without targets, fills the last rows.
    """
    tokens = whole.input_ids.shape[1]
    rows = share.rows(tokens)
    padding = len(rows) * share.ranks - tokens
    here = (whole.target_rows >= rows.start) & (whole.target_rows < rows.stop)
    weights = whole.weights[here]
    first = share.index == 0
    return replace(
        whole,
        input_ids=F.pad(whole.input_ids, (0, padding))[..., rows.start : rows.stop],
        position_ids=F.pad(whole.position_ids, (0, padding))[..., rows.start : rows.stop],
        cu_seqlens=F.pad(whole.cu_seqlens, (0, 1), value=tokens + padding) if padding else whole.cu_seqlens,
        max_length=max(whole.max_length, padding),
        target_rows=whole.target_rows[here] - rows.start,
        labels=whole.labels[here],
        weights=weights,
        weight=float(weights.double().sum()),
        groups=whole.groups[here],
        digest=whole.digest if first else 0,
        masked=whole.masked if first else (),
        share=share,
    )


def _decode(
    packs: Sequence[Pack], places: Sequence[Place], recipe: Recipe, rank_media: Collection[int]
) -> tuple[dict[int, npt.NDArray[Any]], dict[int, str]]:
    """(entry -> patches or mel frames of this rank's media, or of all media where failing media are masked;
    conversation -> why it is to be masked). Media and conversations have their numbers in the joined packs."""
    decoded, masked = dict[int, npt.NDArray[Any]](), dict[int, str]()
    first_segment, first_entry = 0, 0
    for pack, place in zip(packs, places, strict=True):
        set_recipe = recipe.sets[place.set]
        for entry, (m, data) in enumerate(zip(pack.media, pack.media_data(), strict=True), first_entry):
            if recipe.on_bad_media == "stop" and entry not in rank_media:
                continue
            try:
                decoded[entry] = _tower_input(data, m, set_recipe)
            except BadMediaError as error:
                segment = pack.segment_of(m.start)
                source, row = pack.samples[segment].tolist()
                fault = f"{recipe.name(place)}, segment {segment}: {set_recipe.sources[source]} row {row}: {error}"
                if recipe.on_bad_media == "stop":
                    raise TrainError(
                        f"{fault}; set data.on_bad_media: mask to train without such conversations"
                    ) from error
                masked.setdefault(first_segment + segment, fault)
                decoded[entry] = _stand_in(m, set_recipe)
        first_segment += len(pack.lengths)
        first_entry += len(pack.media)
    return decoded, masked


def _tower_input(data: bytes, media: Media, recipe: SetRecipe) -> npt.NDArray[Any]:
    """The patches of an image or row, or the mel frames of a sound. Raises BadMediaError."""
    if media.sound:
        assert recipe.limits.audio is not None
        return sound_frames(data, media.sound, recipe.limits.audio)
    assert recipe.vision is not None
    if media.row:
        return row_patches(data, media, media.row, recipe.vision)
    return image_patches(data, media, recipe.vision)


def _stand_in(media: Media, recipe: SetRecipe) -> npt.NDArray[Any]:
    """Zeros in the form of what these media would be."""
    if media.sound:
        assert recipe.limits.audio is not None
        return mel_frames(np.zeros(media.sound.samples, np.float32), recipe.limits.audio)
    assert recipe.vision is not None
    frames = recipe.vision.temporal_patch_size if media.row else 1
    return np.zeros((np.prod(media.grid_thw), 3 * frames * recipe.vision.patch_size**2), np.uint8)


def _tensor(array: npt.NDArray[Any], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
