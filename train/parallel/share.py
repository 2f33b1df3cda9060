"""The part of a batch of each rank that trains on the same packs (parallel.sequence), decided on the CPU.

Tokens are cut into runs of equal length, in their order, whatever conversations a border cuts. Images and sounds are
dealt out whole, wherever their tokens are, so a rank's features go to the ranks that have their tokens: see Exchange.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.media.geometry import grid_patches
from lmms.configs.contract.pack import Media


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of every batch: number `index` of `ranks`."""

    index: int = 0
    ranks: int = 1

    def rows(self, tokens: int) -> range:
        """The rows of this rank, as many as of any other rank: the last rows may lie behind the sequence's end."""
        length = -(-tokens // self.ranks)
        return range(self.index * length, (self.index + 1) * length)


WHOLE = Share()
"""The share of a rank that shares its packs with no other rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """How many rows of a tower's features go where, in the order of the rows at their sender."""

    sent: tuple[int, ...]
    """[ranks]: rows of this rank's media for each rank; 0 for all from a rank without media."""
    received: tuple[int, ...]
    """[ranks]: rows from each rank."""


def image_sizes(media: Sequence[Media]) -> dict[int, int]:
    """Entry of media -> patches, of each image and row of a video."""
    return {i: grid_patches(entry.grid_thw) for i, entry in enumerate(media) if entry.sound is None}


def sound_sizes(media: Sequence[Media]) -> dict[int, int]:
    """Entry of media -> positions in the tower, of each sound."""
    return {i: sum(entry.sound.chunks) for i, entry in enumerate(media) if entry.sound}


def share_media(sizes: Mapping[int, int], ranks: int) -> list[list[int]]:
    """The entries whose features each rank computes: the largest first, each to the rank with the least so far."""
    loads, shares = [0] * ranks, list[list[int]]([] for _ in range(ranks))
    for entry in sorted(sizes, key=lambda entry: -sizes[entry]):
        rank = loads.index(min(loads))
        loads[rank] += sizes[entry]
        shares[rank].append(entry)
    return [sorted(share) for share in shares]


def exchange_of(
    media: Sequence[Media], shares: Sequence[Sequence[int]], tokens: int, share: Share
) -> tuple[npt.NDArray[np.int64], Exchange]:
    """The rows of this rank's tokens that features fill, int64 in the order in which they are received, and who sends.

    shares: the entries of media of each rank, see share_media; of a sequence of this many tokens.
    """
    rows = [
        np.concatenate([np.zeros(0, np.int64), *(np.arange(media[i].start, media[i].end) for i in entries)])
        for entries in shares
    ]
    local = share.rows(tokens)
    # The rank that has each of these rows. Rows ascend, so what a rank sends is in order by receiver.
    owners = [entry_rows // len(local) for entry_rows in rows]
    sent = np.bincount(owners[share.index], minlength=share.ranks)
    received = [entry_rows[owner == share.index] - local.start for entry_rows, owner in zip(rows, owners, strict=True)]
    return np.concatenate(received), Exchange(sent=tuple(sent.tolist()), received=tuple(map(len, received)))
