"""Randomness that never changes: a 64-bit counter hash, in integers only.

NumPy's generators may change between versions, but an order of packs must stay the same after an upgrade.
The key is the hash of a whole tuple: with seed + epoch, (seed 0, epoch 1) would be (seed 1, epoch 0).
The mixer is fmix64 of MurmurHash3 (Appleby, public domain); the counter's stride is the golden ratio, as in SplitMix64.
"""

import hashlib

import numpy as np
import numpy.typing as npt

_STRIDE = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


def key64(*parts: str | int) -> int:
    """Key of a hash, 0 <= key < 2**64: the first 8 bytes (little-endian) of SHA-256 of the parts joined by '|'."""
    text = "|".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def mix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """uint64 [n] -> uint64 [n]: a bijection of the 64-bit integers in which every bit depends on every bit."""
    for multiplier in _MULTIPLIERS:
        values = (values ^ (values >> _SHIFT)) * np.uint64(multiplier)
    return values ^ (values >> _SHIFT)


def keyed_hash(values: npt.NDArray[np.int64], key: int) -> npt.NDArray[np.uint64]:
    """uint64 [n]: the hash of each of these numbers under a key. Distinct for distinct numbers."""
    keys = np.full(1, key, np.uint64)
    return mix64(mix64(values.astype(np.uint64) * np.uint64(_STRIDE) + keys) ^ keys)


def counter_hash(n: int, key: int) -> npt.NDArray[np.uint64]:
    """uint64 [n]: the hash of 0, 1, ..., n - 1 under a key."""
    return keyed_hash(np.arange(n), key)


def permutation(n: int, key: int) -> npt.NDArray[np.int64]:
    """int64 [n]: the numbers 0 ... n - 1 in the order of their hashes."""
    return np.argsort(counter_hash(n, key), kind="stable").astype(np.int64, copy=False)
