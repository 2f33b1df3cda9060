"""What an audio tower takes for all sounds of a batch, made on the CPU."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from lmms.configs.contract.media.sounds import Audio
from lmms.configs.contract.pack import Media
from lmms.train.batch.recipe import Recipe
from lmms.train.families.family import TowerInputs
from lmms.train.families.vision import longest
from lmms.train.parallel.share import Exchange, exchange_of, share_media, sound_sizes

_DUMMY_FRAMES = 3
"""Frames of the shortest sound that makes a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sounds:
    """A tower's inputs for this rank's share of the sounds, and the rows of its tokens that features fill."""

    frames: Tensor
    """float32 [chunks, mel bins, frames of the longest chunk]; 0 behind shorter chunks."""
    rows: Tensor
    """int64 [sound tokens]: the rows that the features fill, in order; after the exchange, if there is an exchange."""
    tower: TowerInputs
    exchange: Exchange | None
    """Which features go to which rank; None where no rank shares its packs with another."""


def make_sounds(
    recipe: Recipe, media: Sequence[Media], frames: Mapping[int, npt.NDArray[np.float32]], tokens: int
) -> Sounds:
    """The tower's inputs from each sound's place in a sequence of `tokens` tokens, and from this rank's frames.

    recipe: of a model that hears. frames: entry of media -> float32 [mel bins, frames], of at least those of this rank.
    Without any sound: silence of one token, which fills no row. A rank without sounds runs the tower on this silence
    when another rank has sounds.
    """
    audio, share = recipe.sets[0].limits.audio, recipe.share
    assert audio is not None
    shares = share_media(sound_sizes(media), share.ranks)
    sounds = [(frames[i], audio.frames(sound.samples)) for i in shares[share.index] if (sound := media[i].sound)]
    silence = np.zeros((audio.mel_bins, _DUMMY_FRAMES), np.float32)
    rows, exchange = exchange_of(media, shares, tokens, share)
    chunks, tower = _tower_inputs(sounds or [(silence, _DUMMY_FRAMES)], audio)
    return Sounds(
        frames=chunks, rows=torch.from_numpy(rows), tower=tower, exchange=exchange if share.ranks > 1 else None
    )


def _tower_inputs(sounds: Sequence[tuple[npt.NDArray[np.float32], int]], audio: Audio) -> tuple[Tensor, TowerInputs]:
    """(chunks, the names of transformers' audio tower -> its inputs besides them).

    sounds: the frames of each, and how many of them are of the sound itself.
    valid_indices int64 [positions]: where each position stands among those of all chunks, as wide as the widest.
    pool_indices int64 [tokens]: the first of the two positions of each token. chunk_lengths, feature_lens: frames of
    chunks and of sounds.
    """
    chunks, lengths = list[Tensor](), list[int]()
    for frames, count in sounds:
        starts = range(0, count, audio.chunk)
        lengths += [min(audio.chunk, count - start) for start in starts]
        # A sound that is filled up is one chunk, with the frames behind.
        width = frames.shape[1] if audio.is_filled else audio.chunk
        chunks += [torch.from_numpy(frames[:, start : start + width]) for start in starts]
    width = max(chunk.shape[1] for chunk in chunks)
    positions = _positions(torch.tensor(lengths))
    grid = torch.arange(int(_positions(torch.tensor(width))))
    counts = torch.tensor([count for _, count in sounds])
    of_sounds = _positions(counts).tolist()
    firsts = [
        start + torch.arange(0, n - 1, 2) for start, n in zip(accumulate([0, *of_sounds]), of_sounds, strict=False)
    ]
    cu_seqlens = F.pad(positions.cumsum(0, dtype=torch.int32), (1, 0))
    return torch.stack([F.pad(chunk, (0, width - chunk.shape[1])) for chunk in chunks]), {
        "chunk_lengths": torch.tensor(lengths),
        "feature_lens": counts,
        "valid_indices": (grid < positions.unsqueeze(1)).flatten().nonzero().squeeze(1),
        "pool_indices": torch.cat(firsts),
        "cu_seqlens": cu_seqlens,
        "max_seqlen": longest(cu_seqlens),
    }


def _positions(frames: Tensor) -> Tensor:
    return (frames - 1) // 2 + 1
