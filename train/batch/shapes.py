"""The few shapes that all batches of a run are padded to where blocks are compiled, known from the sidecars.

A graph is compiled for each shape, so there are few: one length in tokens, up to four pairs of (conversations, longest
conversation), up to eight numbers of patches, and of positions of sounds. Both values of a pair are bounds that
attention kernels launch work for: many short conversations and few long conversations get different pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.media.sounds import Audio
from lmms.train.data.shards import Sidecar
from lmms.train.families.family import Tower

_PAIRS, _STEPS, _FRAME = 4, 8, 8
"""Pairs of conversations and longest; steps in patches and in positions of sounds; side of the squares that pad a tower
without windows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """What a batch may look like after padding."""

    tokens: int
    """Tokens of every batch."""
    conversations: tuple[tuple[int, int], ...]
    """(conversations, tokens of the longest), padding included, by the longest; a batch takes the first that fits."""
    patches: int = 0
    """The patches of every batch are a multiple of this number."""
    images: int = 0
    """Images of every batch, padding included."""
    longest_image: int = 0
    """Patches of the longest image: a bound for every batch."""
    positions: int = 0
    """The positions of sounds of every batch are a multiple of this number."""
    chunks: int = 0
    """Chunks of sounds of every batch, padding included."""
    longest_chunk: int = 0
    """Positions of the longest chunk: a bound for every batch."""


def shapes_of(
    sidecars: Sequence[Sidecar], seq_len: int, micro_packs: int, tower: Tower | None, audio: Audio | None = None
) -> Shapes:
    """The shapes for every batch of micro_packs packs, none longer than seq_len, of these data sets."""
    tokens, segments, squared, patches, squared_patches, media = (
        np.concatenate([getattr(sidecar, name) for sidecar in sidecars]).astype(np.int64)
        for name in ("tokens", "segments", "sum_squared_lengths", "patches", "sum_squared_patches", "media")
    )
    # No conversation is longer than the root of the sum of squares.
    longest = np.minimum(tokens, np.sqrt(squared).astype(np.int64) + 1)
    pairs = _pairs(tokens, segments, longest, seq_len, micro_packs)
    of_sounds = _sound_shapes(sidecars, micro_packs, audio) if audio else {}
    if tower is None:
        return Shapes(tokens=seq_len * micro_packs, conversations=pairs, **of_sounds)
    frame = frame_side(tower) ** 2
    step = frame * -(-max(int(patches.max()) * micro_packs, 1) // (_STEPS * frame))
    return Shapes(
        tokens=seq_len * micro_packs,
        conversations=pairs,
        patches=step,
        # One image stands in where there is none, and one image is the rest of the padding besides its frames.
        images=max(int(media.max()) * micro_packs, 1) + step // frame + 1,
        longest_image=max(isqrt(int(squared_patches.max())), frame),
        **of_sounds,
    )


def _sound_shapes(sidecars: Sequence[Sidecar], micro_packs: int, audio: Audio) -> dict[str, int]:
    """The fields of Shapes for sounds."""
    positions, media = (
        max(int(getattr(sidecar, name).max()) for sidecar in sidecars) * micro_packs
        for name in ("sound_positions", "media")
    )
    longest = max(audio.tower_chunks(audio.longest))
    step = -(-max(positions, 1) // _STEPS)
    # The whole chunks of all sounds, the rest of each sound, silence that stands in, and the padding.
    return {
        "positions": step,
        "chunks": positions // longest + max(media, 1) + -(-step // longest),
        "longest_chunk": longest,
    }


def frame_side(tower: Tower) -> int:
    """Side in patches of the squares that patches are padded by: a window, where the tower has windows."""
    return tower.window_size // tower.patch_size if tower.window_size else _FRAME


def _pairs(
    tokens: npt.NDArray[np.int64],
    segments: npt.NDArray[np.int64],
    longest: npt.NDArray[np.int64],
    seq_len: int,
    micro_packs: int,
) -> tuple[tuple[int, int], ...]:
    """A batch belongs to the pair of its longest conversation; its other packs may have shorter conversations."""
    most = int(longest.max())
    bounds = [-(-most // 2**i) for i in reversed(range(_PAIRS))]
    pairs = []
    for shorter, bound in zip([0, *bounds], bounds, strict=False):
        of_pair, others = (longest > shorter) & (longest <= bound), longest <= bound
        if of_pair.any():
            # Padding is cut into conversations too, and a pack that is missing is nothing but padding.
            needs = segments + -(-(seq_len - tokens) // bound)
            other = max(int(needs[others].max()), -(-seq_len // bound))
            pairs.append((int(needs[of_pair].max()) + (micro_packs - 1) * other, bound))
    return tuple(pairs)
