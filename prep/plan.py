"""sample -> plan: which samples share a pack. Global best-fit decreasing (BFD) on exact lengths, by histogram.

The rule, sample by sample, is ordinary BFD: samples with media first, then text (which needs no patches), each group by
falling larger share of the two budgets (then tokens, then patches, then input order); each sample into the bin with the
least token space left among those that hold it, then with the least patch space left; an empty bin when none does.

Bins equal in both spaces are one class and equal samples one type, so the work is per type and class touched, not per
sample: a bin that takes a sample becomes the tightest of all, so the bin takes more samples of that type until the bin
is full; then the next bin of the class does the same. (BFD with a tree over the spaces: Ding et al., arXiv 2404.10830.)

BFD leaves the packs sorted by length, so they are permuted (seeded) before they get their numbers.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.hashing import key64, permutation
from lmms.configs.errors import BuildError

ALGORITHM = "bfd/1"
"""Name that the manifest stores. Any change of the result needs a new name."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which samples share a pack. The samples of pack p are order[starts[p] : starts[p + 1]], in input order."""

    num_packs: int
    pack_of: Ints
    """int64 [samples]: the pack of each sample."""
    order: Ints
    """int64 [samples]: samples by pack."""
    starts: Ints
    """int64 [packs + 1]: where each pack starts in `order`."""


def plan_packs(
    tokens: npt.NDArray[np.int32], patches: npt.NDArray[np.int32], seq_len: int, max_patches: int, seed: int
) -> Plan:
    """Which of the samples of `tokens` and `patches`, int32 [samples], share a pack of seq_len and max_patches.

    Depends on nothing but its arguments and ALGORITHM. Raises BuildError for a sample that no pack holds.
    """
    _check(tokens, patches, seq_len, max_patches)
    bins = _Bins(seq_len, max_patches, len(tokens))
    bin_of = np.zeros(len(tokens), np.int64)
    for samples in (np.flatnonzero(patches > 0), np.flatnonzero(patches == 0)):
        samples = samples[_decreasing(tokens[samples], patches[samples], seq_len, max_patches)]
        bin_of[samples] = _place(bins, tokens[samples], patches[samples])
    num_packs = int(bin_of.max(initial=-1)) + 1
    pack_of = permutation(num_packs, key64("lmms/plan", ALGORITHM, "packs", seed))[bin_of]
    starts = np.concatenate([[0], np.cumsum(np.bincount(pack_of, minlength=num_packs))])
    return Plan(num_packs, pack_of, np.argsort(pack_of, kind="stable"), starts)


class _Bins:
    """The bins and the space left in each; at first all are empty, and there are as many as could be needed.

    A tree over token space holds the largest patch space below each node, so the tightest bin is found in log(seq_len).
    """

    def __init__(self, seq_len: int, max_patches: int, num_bins: int) -> None:
        self._size = 1 << seq_len.bit_length()
        self._tree = [-1] * (2 * self._size)
        self._patch_spaces: list[list[int]] = [[] for _ in range(seq_len + 1)]
        """Patch spaces of the bins of each token space, sorted, each once."""
        self._ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        """(token space, patch space) -> its bins, as (first, count)."""
        if num_bins:
            self.put((seq_len, max_patches), 0, num_bins)

    def tightest(self, tokens: int, patches: int) -> tuple[int, int]:
        """(token space, patch space) of the tightest bin that holds a sample. There is always an empty bin."""
        tree, node = self._tree, self._size + tokens
        while tree[node] < patches:
            while node & 1:
                node >>= 1
            node += 1
        while node < self._size:
            node *= 2
            node += tree[node] < patches
        space = node - self._size
        spaces = self._patch_spaces[space]
        return space, spaces[bisect_left(spaces, patches)]

    def take(self, space: tuple[int, int], most: int) -> tuple[int, int]:
        """Remove up to `most` bins of this space: (first, count), in one range."""
        ranges = self._ranges[space]
        first, count = ranges.pop()
        if count > most:
            ranges.append((first + most, count - most))
            return first, most
        if not ranges:
            del self._ranges[space]
            spaces = self._patch_spaces[space[0]]
            del spaces[bisect_left(spaces, space[1])]
            self._update(space[0], spaces[-1] if spaces else -1)
        return first, count

    def put(self, space: tuple[int, int], first: int, count: int) -> None:
        """Add bins first ... first + count - 1, which have this space left."""
        ranges = self._ranges.get(space)
        if ranges is not None:
            ranges.append((first, count))
            return
        self._ranges[space] = [(first, count)]
        spaces = self._patch_spaces[space[0]]
        insort(spaces, space[1])
        self._update(space[0], spaces[-1])

    def _update(self, token_space: int, largest: int) -> None:
        tree, node = self._tree, self._size + token_space
        while node and tree[node] != largest:
            tree[node] = largest
            sibling = tree[node ^ 1]
            largest = sibling if sibling > largest else largest
            node >>= 1


def _place(bins: _Bins, tokens: npt.NDArray[np.int32], patches: npt.NDArray[np.int32]) -> Ints:
    """int64 [samples]: the bin of each sample, placed in the order given; equal samples stand together."""
    runs = np.array([run for kind in _types(tokens, patches) for run in _place_type(bins, *kind)], np.int64)
    first, count, each = runs.reshape(-1, 3).T
    ends = np.cumsum(count)
    filled = np.repeat(first - (ends - count), count) + np.arange(ends[-1] if len(ends) else 0)
    return np.repeat(filled, np.repeat(each, count))


def _types(tokens: npt.NDArray[np.int32], patches: npt.NDArray[np.int32]) -> Iterator[tuple[int, int, int]]:
    """(tokens, patches, how many) of each run of equal samples."""
    changes = np.flatnonzero((np.diff(tokens) != 0) | (np.diff(patches) != 0)) + 1
    starts = np.concatenate([[0], changes]) if len(tokens) else changes
    counts = np.diff(np.append(starts, len(tokens)))
    return zip(tokens[starts].tolist(), patches[starts].tolist(), counts.tolist(), strict=True)


def _place_type(bins: _Bins, tokens: int, patches: int, left: int) -> Iterator[tuple[int, int, int]]:
    """Place `left` equal samples: runs of (first bin, number of bins, samples in each)."""
    while left:
        token_space, patch_space = bins.tightest(tokens, patches)
        each = token_space // tokens
        if patches:
            each = min(each, patch_space // patches)
        each = min(each, left)
        first, count = bins.take((token_space, patch_space), left // each)
        bins.put((token_space - each * tokens, patch_space - each * patches), first, count)
        left -= count * each
        yield first, count, each


def _decreasing(tokens: npt.NDArray[np.int32], patches: npt.NDArray[np.int32], seq_len: int, max_patches: int) -> Ints:
    """int64 [samples]: sample numbers by falling (larger share of a budget, tokens, patches), ties in input order."""
    wide = tokens.astype(np.int64)
    order = np.argsort(-((wide << 32) | patches), kind="stable")
    share = np.maximum(wide * max_patches, patches.astype(np.int64) * seq_len)[order]
    return order[np.argsort(-share, kind="stable")]


def _check(tokens: npt.NDArray[np.int32], patches: npt.NDArray[np.int32], seq_len: int, max_patches: int) -> None:
    bad = np.flatnonzero((tokens < 1) | (tokens > seq_len) | (patches < 0) | (patches > max_patches))
    if len(bad):
        i = int(bad[0])
        raise BuildError(
            f"sample {i}: {tokens[i]} tokens and {patches[i]} patches; a pack holds 1 to {seq_len} tokens and at most "
            f"{max_patches} patches; reject it, or raise seq_len or max_patches"
        )
