"""Packs as batches for a transformers model: padded conversations, or one sequence for each pack."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.configs.contract.pack import Pack
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.images import normalised
from lmms.train.batch.recipe import Recipe
from lmms.train.data.shards import Place

PADDED = 2
"""Conversations of a padded batch, in order: the usual number on a GPU with models of this size."""
IGNORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainBatch:
    """Keyword arguments of a transformers model, and the fields that lmms's step needs."""

    inputs: dict[str, Tensor]
    labels: Tensor
    """int64 [rows, tokens], like input_ids: IGNORED for tokens that are not predicted."""
    cu_seqlens: Tensor | None
    """int32 [conversations + 1] of a packed batch; None for a padded batch."""
    longest: int
    """Tokens of the longest conversation."""
    weight: float
    masked: tuple[str, ...] = ()
    digest: int = 0


def packed_batches(packs: Sequence[Pack], recipe: Recipe) -> Iterator[PlainBatch]:
    """One batch for each pack: a sequence [1, tokens], whose conversations are bounded by cu_seqlens."""
    for batch, labels in (_labelled(pack, recipe) for pack in packs):
        lengths = batch.cu_seqlens.diff().long()
        starts = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
        # Each token's place in its conversation, from which transformers would find the bounds.
        text = torch.arange(len(starts)) - starts
        inputs = {"input_ids": batch.input_ids, "position_ids": torch.cat([text[None, None], batch.position_ids])}
        yield PlainBatch(
            inputs={**inputs, **_pictures(batch)},
            labels=labels[None],
            cu_seqlens=batch.cu_seqlens,
            longest=batch.max_length,
            weight=batch.weight,
        )


def padded_batches(packs: Sequence[Pack], recipe: Recipe) -> Iterator[PlainBatch]:
    """Batches of PADDED conversations, each from position 0 on, filled up to the longest."""
    for pack in packs:
        count = len(pack.lengths)
        for first in range(0, count, PADDED):
            yield _padded([_conversation(pack, i) for i in range(first, min(first + PADDED, count))], recipe)


def _padded(conversations: Sequence[Pack], recipe: Recipe) -> PlainBatch:
    rows = [_labelled(conversation, recipe) for conversation in conversations]
    longest = max(batch.input_ids.shape[1] for batch, _ in rows)

    def filled(tensor: Tensor, value: int = 0) -> Tensor:
        return F.pad(tensor, (0, longest - tensor.shape[-1]), value=value)

    inputs = {
        "input_ids": torch.cat([filled(batch.input_ids) for batch, _ in rows]),
        "position_ids": torch.cat([filled(batch.position_ids) for batch, _ in rows], dim=1),
        "attention_mask": torch.stack([filled(torch.ones_like(batch.input_ids[0])) for batch, _ in rows]),
    }
    shown = [_pictures(batch) for batch, _ in rows if batch.images]
    pictures = {name: torch.cat([picture[name] for picture in shown]) for name in (shown[0] if shown else ())}
    return PlainBatch(
        inputs={**inputs, **pictures},
        labels=torch.stack([filled(labels, IGNORED) for _, labels in rows]),
        cu_seqlens=None,
        longest=longest,
        weight=sum(batch.weight for batch, _ in rows),
    )


def _conversation(pack: Pack, segment: int) -> Pack:
    """A pack with one conversation of another pack."""
    start, end = pack.cu_seqlens[segment : segment + 2].tolist()
    inside = (pack.targets[:, 0] >= start) & (pack.targets[:, 1] <= end)
    shown = [(m, data) for m, data in zip(pack.media, pack.media_data(), strict=True) if start <= m.start < end]
    return Pack(
        input_ids=pack.input_ids[start:end],
        cu_seqlens=np.array([0, end - start], np.int32),
        targets=pack.targets[inside] - np.int32(start),
        target_weights=pack.target_weights[inside],
        sample_weights=pack.sample_weights[segment : segment + 1],
        samples=pack.samples[segment : segment + 1],
        media=tuple(replace(m, start=m.start - start, end=m.end - start) for m, _ in shown),
        media_bytes=b"".join(data for _, data in shown),
    )


def _labelled(pack: Pack, recipe: Recipe) -> tuple[Batch, Tensor]:
    """lmms's batch of a pack, and its labels in the form of transformers: int64 [tokens]."""
    batch = make_batch([pack], recipe, [Place(set=0, pack=0, shard=0, offset=0, bytes=0, xxh3=0)])
    labels = torch.full((batch.input_ids.shape[1],), IGNORED)
    labels[batch.target_rows + 1] = batch.labels
    return batch, labels


def _pictures(batch: Batch) -> dict[str, Tensor]:
    pictures = batch.vision
    if pictures is None or not batch.images:
        return {}
    pixels = normalised(pictures.patches, pictures.pixel_constants, pictures.temporal_patch_size, pictures.frames)
    return {"pixel_values": pixels, "image_grid_thw": pictures.grid_thw}
