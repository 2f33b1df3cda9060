"""The part of a batch of each rank that trains on the same packs (parallel.sequence), decided on the CPU.

Tokens are cut into runs of equal length, in their order, whatever conversations a border cuts. Images are dealt out
whole, wherever their tokens are, so a rank's features go to the ranks that have their tokens: see Exchange.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.geometry import grid_patches
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
    """How many rows of image features go where, in the order of the rows at their sender."""

    sent: tuple[int, ...]
    """[ranks]: rows of this rank's images for each rank; 0 for all from a rank without images."""
    received: tuple[int, ...]
    """[ranks]: rows from each rank."""


def share_images(media: Sequence[Media], ranks: int) -> list[list[int]]:
    """The images whose features each rank computes: the largest first, each to the rank with the fewest patches."""
    patches = [grid_patches(entry.grid_thw) for entry in media]
    loads, shares = [0] * ranks, list[list[int]]([] for _ in range(ranks))
    for image in sorted(range(len(media)), key=lambda image: -patches[image]):
        rank = loads.index(min(loads))
        loads[rank] += patches[image]
        shares[rank].append(image)
    return [sorted(share) for share in shares]


def exchange_of(media: Sequence[Media], tokens: int, share: Share) -> tuple[npt.NDArray[np.int64], Exchange]:
    """The rows of this rank's tokens that features fill, int64 in the order in which they are received, and who sends.

    media: all images of a sequence of this many tokens.
    """
    rows = [
        np.concatenate([np.zeros(0, np.int64), *(np.arange(media[i].start, media[i].end) for i in images)])
        for images in share_images(media, share.ranks)
    ]
    local = share.rows(tokens)
    # The rank that has each of these rows. Rows ascend, so what a rank sends is in order by receiver.
    owners = [image_rows // len(local) for image_rows in rows]
    sent = np.bincount(owners[share.index], minlength=share.ranks)
    received = [image_rows[owner == share.index] - local.start for image_rows, owner in zip(rows, owners, strict=True)]
    return np.concatenate(received), Exchange(sent=tuple(sent.tolist()), received=tuple(map(len, received)))
