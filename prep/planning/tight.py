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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from lmms.configs.contract.hashing import key64, permutation
from lmms.configs.errors import BuildError

ALGORITHM = "bfd/1"
"""Name that the manifest stores. Any change of the result needs a new name."""

_WORD_BITS = 7
_IN_WORD = (1 << _WORD_BITS) - 1
_BLOCK = 2**16
"""Kinds of samples that are Python numbers at a time."""

Ints = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


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


def plan_packs(tokens: Int32s, patches: Int32s, seq_len: int, max_patches: int, seed: int) -> Plan:
    """Which of the samples of `tokens` and `patches`, int32 [samples], share a pack of seq_len and max_patches.

    Depends on nothing but its arguments and ALGORITHM. Raises BuildError for a sample that no pack holds.
    """
    check_samples(tokens, patches, seq_len, max_patches)
    return numbered(_best_fit(tokens, patches, seq_len, max_patches), ALGORITHM, seed)


def _best_fit(tokens: Int32s, patches: Int32s, seq_len: int, max_patches: int) -> Int32s:
    """int32 [samples]: the bin of each sample."""
    bins = _Bins(seq_len, _patches_bind(tokens, patches, seq_len, max_patches))
    if len(tokens):
        bins.put((seq_len, max_patches), 0, len(tokens))
    bin_of = np.zeros(len(tokens), np.int32)
    media, text = np.flatnonzero(patches), np.flatnonzero(patches == 0).astype(np.int32)
    media = media[_decreasing(tokens[media], patches[media], seq_len, max_patches)]
    bin_of[media] = _place(bins, _kinds(tokens[media], patches[media]))
    counts = np.bincount(lengths := tokens[text])
    text = text[_by_falling_length(lengths, seq_len)]
    del lengths  # 40 MB of ten million samples
    bin_of[text] = _place(bins, ((length, 0, int(counts[length])) for length in np.flatnonzero(counts)[::-1].tolist()))
    return bin_of


def place_rest(space: Int32s, patch_space: Int32s, samples: tuple[Int32s, Int32s], size: tuple[int, int]) -> Ints:
    """int64 [samples]: bins of best-fit decreasing where bins with samples are there already.

    space, patch_space: room of those bins. samples: their tokens and patches. size: of an empty bin; the numbers of new
    bins follow those of the given bins.
    """
    tokens, patches = samples
    bin_of = np.zeros(len(tokens), np.int64)
    for which in (np.flatnonzero(patches > 0), np.flatnonzero(patches == 0)):
        if not len(which):
            continue
        with_patches = bool(patches[which[0]])
        which = which[_decreasing(tokens[which], patches[which], *size)]
        spaces = patch_space if with_patches else patch_space * 0
        numbers, bins = _standing(space, spaces, int(tokens[which].min()), size[0])
        bins.put((size[0], size[1] if with_patches else 0), len(space), len(which))
        placed = _place(bins, _kinds(tokens[which], patches[which]))
        numbers = np.concatenate([numbers, np.arange(len(space), len(space) + len(which))])
        bin_of[which] = numbers[placed]
        opened = max(int(bin_of[which].max()) + 1 - len(space), 0)
        space = np.concatenate([space, np.full(opened, size[0], np.int32)])
        patch_space = np.concatenate([patch_space, np.full(opened, size[1], np.int32)])
        np.subtract.at(space, bin_of[which], tokens[which])
        np.subtract.at(patch_space, bin_of[which], patches[which])
    return bin_of


def _standing(space: Int32s, patch_space: Int32s, smallest: int, seq_len: int) -> tuple[Ints, "_Bins"]:
    """Bins that hold something already: bin i of the result is the bin numbers[i] of those given."""
    numbers = np.lexsort((patch_space, space))
    bins = _Bins(seq_len, patches_bind=True)
    sorted_space, sorted_patches = space[numbers], patch_space[numbers]
    first = int(np.searchsorted(sorted_space, smallest))
    for token_space, patches_left, start, count in _runs(sorted_space[first:], sorted_patches[first:]):
        bins.put((token_space, patches_left), first + start, count)
    return numbers, bins


def numbered(bin_of: Int32s, algorithm: str, seed: int) -> Plan:
    """The plan in which the samples of a bin share a pack. Empty bins become no packs; the packs are permuted."""
    counts = np.bincount(bin_of)
    filled = counts > 0
    number_of = permutation(int(filled.sum()), key64("lmms/plan", algorithm, "packs", seed))
    samples = np.empty_like(number_of)
    samples[number_of] = counts[filled]
    pack_of = number_of[np.cumsum(filled) - 1][bin_of]
    return Plan(len(number_of), pack_of, _sorted_by(pack_of), np.concatenate([[0], np.cumsum(samples)]))


class _Bins:
    """The bins and the space left in each.

    A tree over token space holds the largest patch space below each node, so the tightest bin is found in log(seq_len).
    Where every bin with room for a sample's tokens has room for its patches, bits that say where there are bins do, in
    a third of the time.
    """

    def __init__(self, seq_len: int, patches_bind: bool) -> None:
        self._patches_bind = patches_bind
        self._size = 1 << seq_len.bit_length()
        self._tree = [-1] * (2 * self._size) if patches_bind else []
        self._spaces = _Spaces(seq_len)
        self._patch_spaces: list[list[int]] = [[] for _ in range(seq_len + 1)]
        """Patch spaces of the bins of each token space, sorted, each once."""
        self._ranges: dict[tuple[int, int], list[tuple[int, int]]] = {}
        """(token space, patch space) -> its bins, as (first, count)."""

    def tightest(self, tokens: int, patches: int) -> tuple[int, int]:
        """(token space, patch space) of the tightest bin that holds a sample. There is always an empty bin."""
        space = self._with_patches(tokens, patches) if self._patches_bind else self._spaces.least_from(tokens)
        spaces = self._patch_spaces[space]
        return space, spaces[bisect_left(spaces, patches)]

    def _with_patches(self, tokens: int, patches: int) -> int:
        """The least token space from `tokens` on of a bin with so much patch space."""
        tree, node = self._tree, self._size + tokens
        while tree[node] < patches:
            while node & 1:
                node >>= 1
            node += 1
        while node < self._size:
            node *= 2
            node += tree[node] < patches
        return node - self._size

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
            if self._patches_bind:
                self._update(space[0], spaces[-1] if spaces else -1)
            elif not spaces:
                self._spaces.flip(space[0])
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
        if self._patches_bind:
            self._update(space[0], spaces[-1])
        elif len(spaces) == 1:
            self._spaces.flip(space[0])

    def _update(self, token_space: int, largest: int) -> None:
        tree, node = self._tree, self._size + token_space
        while node and tree[node] != largest:
            tree[node] = largest
            sibling = tree[node ^ 1]
            largest = sibling if sibling > largest else largest
            node >>= 1


class _Spaces:
    """A set of token spaces, as bits of words, and bits of the words that are not zero."""

    def __init__(self, seq_len: int) -> None:
        self._words = [0] * ((seq_len >> _WORD_BITS) + 1)
        self._filled = 0

    def least_from(self, space: int) -> int:
        """The least space of the set from this one on. There is one."""
        number = space >> _WORD_BITS
        word = self._words[number] >> (space & _IN_WORD)
        if not word:
            filled = self._filled >> number + 1
            number += (filled & -filled).bit_length()
            word, space = self._words[number], number << _WORD_BITS
        return space + (word & -word).bit_length() - 1

    def flip(self, space: int) -> None:
        """Add a space that is not in the set, or remove one that is."""
        number = space >> _WORD_BITS
        before = self._words[number]
        after = self._words[number] = before ^ 1 << (space & _IN_WORD)
        if not before or not after:
            self._filled ^= 1 << number


def _place(bins: _Bins, kinds: Iterable[tuple[int, int, int]]) -> Int32s:
    """int32 [samples]: the bin of each sample; `kinds` are (tokens, patches, number) of equal samples, in order."""
    first, count, each = np.fromiter(chain.from_iterable(_place_kinds(bins, kinds)), np.int32).reshape(-1, 3).T
    ends = np.cumsum(count, dtype=np.int32)
    filled = np.repeat(first - (ends - count), count)
    filled += np.arange(len(filled), dtype=np.int32)
    return np.repeat(filled, np.repeat(each, count))


def _kinds(tokens: Int32s, patches: Int32s) -> Iterator[tuple[int, int, int]]:
    """(tokens, patches, number) of each run of equal samples."""
    return ((t, p, number) for t, p, _, number in _runs(tokens, patches))


def _runs(tokens: Int32s, patches: Int32s) -> Iterator[tuple[int, int, int, int]]:
    """(tokens, patches, first, how many) of each run of equal entries."""
    changes = np.flatnonzero((np.diff(tokens) != 0) | (np.diff(patches) != 0)) + 1
    starts = np.concatenate([[0], changes]) if len(tokens) else changes
    counts = np.diff(np.append(starts, len(tokens)))
    for block in range(0, len(starts), _BLOCK):
        part = slice(block, block + _BLOCK)
        columns = (tokens[starts[part]], patches[starts[part]], starts[part], counts[part])
        yield from zip(*(column.tolist() for column in columns), strict=True)


def _place_kinds(bins: _Bins, kinds: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """Place equal samples, kind by kind: runs of (first bin, number of bins, samples in each)."""
    tightest, take, put = bins.tightest, bins.take, bins.put
    for tokens, patches, left in kinds:
        while left:
            space = token_space, patch_space = tightest(tokens, patches)
            each = token_space // tokens
            if patches:
                each = min(each, patch_space // patches)
            each = min(each, left)
            first, count = take(space, left // each)
            put((token_space - each * tokens, patch_space - each * patches), first, count)
            left -= count * each
            yield first, count, each


def _decreasing(tokens: Int32s, patches: Int32s, seq_len: int, max_patches: int) -> Ints:
    """int64 [samples]: sample numbers by falling (larger share of a budget, tokens, patches), ties in input order."""
    if not patches.any():
        return _by_falling_length(tokens, seq_len)
    wide = tokens.astype(np.int64)
    order = np.argsort(-((wide << 32) | patches), kind="stable")
    share = np.maximum(wide * max_patches, patches.astype(np.int64) * seq_len)[order]
    return order[np.argsort(-share, kind="stable")]


def _by_falling_length(tokens: Int32s, seq_len: int) -> Ints:
    """int64 [samples]: the longest first, ties in input order."""
    shorter = seq_len - tokens
    return np.argsort(shorter.astype(np.uint16) if seq_len <= 2**16 else shorter, kind="stable")


def _sorted_by(keys: Int32s | Ints) -> Ints:
    """int64 [n]: what np.argsort(keys, kind="stable") gives, for keys of 0 and more; faster."""
    bits = len(keys).bit_length()
    sorting = keys.astype(np.int64)
    sorting <<= bits
    sorting |= np.arange(len(keys), dtype=np.int32)
    sorting.sort()
    sorting &= (1 << bits) - 1
    return sorting


def _patches_bind(tokens: Int32s, patches: Int32s, seq_len: int, max_patches: int) -> bool:
    """Whether any sample takes a larger share of a pack's patches than of its tokens: else patches always have room."""
    media = np.flatnonzero(patches)
    return bool((patches[media].astype(np.int64) * seq_len > tokens[media].astype(np.int64) * max_patches).any())


def check_samples(tokens: Int32s, patches: Int32s, seq_len: int, max_patches: int) -> None:
    bad = np.flatnonzero((tokens < 1) | (tokens > seq_len) | (patches < 0) | (patches > max_patches))
    if len(bad):
        i = int(bad[0])
        raise BuildError(
            f"sample {i}: {tokens[i]} tokens and {patches[i]} patches; a pack holds 1 to {seq_len} tokens and at most "
            f"{max_patches} patches; reject it, or raise seq_len or max_patches"
        )
