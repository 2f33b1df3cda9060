"""What the packs of a file look like: drawn once by a seed, the same for every model and every pack.

All packs of a file hold conversations of the same lengths with images of the same grids, in another order, so compiled
blocks meet one shape and every step is the same work.
"""

from dataclasses import dataclass

import numpy as np

from tools.gpu.sizes import Sizes

Grid = tuple[int, int]
"""Rows and columns of an image, in tokens."""

TARGETS = 0.5
"""Of a conversation's text, its end, that is predicted."""

_SPREAD, _IMAGES_AT_MOST = 0.7, 4
_LEAST_TEXT = 8


@dataclass(frozen=True, slots=True)
class Conversation:
    """Images, each between its two marks, then text."""

    images: tuple[Grid, ...]
    text: int
    """Tokens."""

    @property
    def vision(self) -> int:
        """Tokens of its images."""
        return sum(rows * columns for rows, columns in self.images)

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.vision + 2 * len(self.images) + self.text


def make_layout(sizes: Sizes, vision_share: float, seed: int) -> list[Conversation]:
    """Conversations of exactly seq_len tokens, this share of them images' (to within an image's row).

    Without images the lengths are log-normal between the bounds of `sizes`. With images, one to four stand in a
    conversation as far as its length allows, and the rest of the pack is dealt out to them as text.
    """
    rng = np.random.default_rng([seed, round(1000 * vision_share)])
    if not vision_share:
        return [Conversation((), length) for length in _lengths(sizes, rng)]
    groups = _grouped(_grids(sizes, round(vision_share * sizes.seq_len), rng), sizes, rng)
    shown = sum(Conversation(images, 0).tokens for images in groups)
    spare = sizes.seq_len - shown - _LEAST_TEXT * len(groups)
    shares = rng.lognormal(0, _SPREAD, len(groups))
    texts = _LEAST_TEXT + np.floor(spare * shares / shares.sum()).astype(int)
    texts[0] += sizes.seq_len - shown - int(texts.sum())
    return [Conversation(images, int(text)) for images, text in zip(groups, texts, strict=True)]


def _lengths(sizes: Sizes, rng: np.random.Generator) -> list[int]:
    shortest, median, longest = sizes.conversation
    lengths = list[int]()
    while (left := sizes.seq_len - sum(lengths)) > longest:
        drawn = int(np.clip(rng.lognormal(np.log(median), _SPREAD), shortest, longest))
        lengths.append(min(drawn, left - shortest))
    return [*lengths, left]


def _grids(sizes: Sizes, tokens: int, rng: np.random.Generator) -> list[Grid]:
    fewest, most = sizes.image
    grids = list[Grid]()
    while (left := tokens - sum(rows * columns for rows, columns in grids)) >= fewest:
        area = np.exp(rng.uniform(np.log(fewest), np.log(most)))
        aspect = np.exp(rng.uniform(-0.7, 0.7))
        rows = max(int(np.sqrt(area * aspect)), 2)
        columns = max(int(area / rows), 2)
        grids.append((rows, min(columns, max(left // rows, 1))))
    return grids


def _grouped(grids: list[Grid], sizes: Sizes, rng: np.random.Generator) -> list[tuple[Grid, ...]]:
    groups = list[tuple[Grid, ...]]()
    # Room is left for text: about as much as the images of an average conversation take.
    room = sizes.conversation[2] * 0.6
    wanted = 0
    for grid in grids:
        if wanted and Conversation((*groups[-1], grid), 0).tokens <= room:
            groups[-1] = (*groups[-1], grid)
            wanted -= 1
        else:
            groups.append((grid,))
            wanted = int(rng.integers(0, _IMAGES_AT_MOST))
    return groups
