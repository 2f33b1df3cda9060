"""How others fill packs, for tools/bench/plans.py: the rules of their packers, written anew after reading their code.

Each function takes lengths int64 [samples], in the order of a shuffled data set, and
gives the pack of each sample, int64 [samples]. Their packers know lengths alone: neither patches nor costs.

    TRL             strategy bfd: best-fit decreasing, in batches of 1,000 (the batch of datasets.map)
    ms-swift        best-fit decreasing in batches of 1,000 (binpacking.to_constant_volume); the last pack of a batch
                    goes back into the next batch
    LLaMA-Factory   greedy_knapsack in batches of 1,000: into a pack the longest that fits, until nothing fits
    axolotl         pack_parallel: first fit in the order given, in groups of 100,000, at most 200 samples a pack
"""

from bisect import bisect_right, insort
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_BATCH, _GROUP, _MOST_SAMPLES = 1000, 100_000, 200


def trl(lengths: Ints, seq_len: int) -> Ints:
    """Best-fit decreasing, batch by batch."""
    return _batches(lengths, seq_len, _best_fit)


def llama_factory(lengths: Ints, seq_len: int) -> Ints:
    """Greedy knapsacks, batch by batch."""
    return _batches(lengths, seq_len, _knapsacks)


def ms_swift(lengths: Ints, seq_len: int) -> Ints:
    """Best-fit decreasing, batch by batch; the last pack is packed again with the next batch."""
    pack_of, packs, kept = np.zeros(len(lengths), np.int64), 0, list[int]()
    for start in range(0, len(lengths), _BATCH):
        numbers = kept + list(range(start, min(start + _BATCH, len(lengths))))
        in_batch = _best_fit(lengths[numbers], seq_len)
        is_last = start + _BATCH >= len(lengths)
        whole = in_batch.max() + 1 if is_last else in_batch.max()
        kept = [number for number, pack in zip(numbers, in_batch.tolist(), strict=True) if pack >= whole]
        pack_of[numbers] = packs + in_batch
        packs += int(whole)
    return pack_of


def axolotl(lengths: Ints, seq_len: int) -> Ints:
    """First fit in the order given, group by group."""
    pack_of, packs = np.zeros(len(lengths), np.int64), 0
    for start in range(0, len(lengths), _GROUP):
        group = lengths[start : start + _GROUP]
        room, samples, opened = np.full(len(group), seq_len), np.zeros(len(group), np.int64), 1
        for number, length in enumerate(group.tolist()):
            pack = int(np.argmax(room[: opened + 1] >= length))
            room[pack] -= length
            samples[pack] += 1
            if samples[pack] == _MOST_SAMPLES:
                room[pack] = -1
            opened = min(max(opened, pack + 1), len(group) - 1)
            pack_of[start + number] = packs + pack
        packs = int(pack_of[: start + len(group)].max()) + 1
    return pack_of


PACKERS: Mapping[str, Callable[[Ints, int], Ints]] = {
    "TRL": trl,
    "ms-swift": ms_swift,
    "LLaMA-Factory": llama_factory,
    "axolotl": axolotl,
}


def _batches(lengths: Ints, seq_len: int, pack: Callable[[Ints, int], Ints]) -> Ints:
    parts, packs = [], 0
    for start in range(0, len(lengths), _BATCH):
        parts.append(packs + pack(lengths[start : start + _BATCH], seq_len))
        packs = int(parts[-1].max()) + 1
    return np.concatenate(parts)


def _best_fit(lengths: Ints, seq_len: int) -> Ints:
    pack_of, spaces, packs = np.zeros(len(lengths), np.int64), list[tuple[int, int]](), 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[number])
        at = bisect_right(spaces, (length, -1))
        space, pack = spaces.pop(at) if at < len(spaces) else (seq_len, packs)
        packs = max(packs, pack + 1)
        pack_of[number] = pack
        insort(spaces, (space - length, pack))
    return pack_of


def _knapsacks(lengths: Ints, seq_len: int) -> Ints:
    pack_of, left, pack = np.zeros(len(lengths), np.int64), list[tuple[int, int]](), 0
    left = sorted((length, number) for number, length in enumerate(lengths.tolist()))
    while left:
        space = seq_len
        while (at := bisect_right(left, (space, len(lengths)))) > 0:
            length, number = left.pop(at - 1)
            space -= length
            pack_of[number] = pack
        pack += 1
    return pack_of
