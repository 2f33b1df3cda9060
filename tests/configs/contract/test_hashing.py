"""The counter hash: a permutation for any size, spread evenly, and the same for ever."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.contract.hashing import counter_hash, key64, keyed_hash, mix64, permutation


def digest(values: npt.NDArray[Any]) -> str:
    return hashlib.sha256(values.astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest()[:16]


@given(st.integers(0, 2_000), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permutation_holds_every_number_once(n: int, key: int) -> None:
    assert sorted(permutation(n, key).tolist()) == list(range(n))


def fmix64(x: int) -> int:
    """Of MurmurHash3, in Python's own integers."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> 33)) * multiplier % 2**64
    return x ^ (x >> 33)


def test_mixer_is_the_published_one() -> None:
    values = [0, 1, 2**33, 2**63, 2**64 - 1, 0x123456789ABCDEF]
    assert mix64(np.array(values, np.uint64)).tolist() == [fmix64(x) for x in values]


def test_key_depends_on_the_tuple_and_not_on_its_sum() -> None:
    assert len({key64("order", seed, epoch) for seed in range(50) for epoch in range(50)}) == 2_500


@given(st.lists(st.integers(0, 2**63 - 1), max_size=20), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_hash_of_a_number_depends_on_it_and_the_key_alone(numbers: list[int], key: int) -> None:
    expected = [fmix64(fmix64((x * 0x9E3779B97F4A7C15 + key) % 2**64) ^ key) for x in numbers]
    assert keyed_hash(np.array(numbers, np.int64), key).tolist() == expected


def test_hashes_under_one_key_are_distinct_and_under_two_are_others() -> None:
    numbers = np.arange(100_000) * 977
    first, second = (keyed_hash(numbers, key64("test", key)) for key in range(2))
    assert len(np.unique(first)) == len(numbers)
    assert not np.any(first == second)
    assert np.array_equal(keyed_hash(np.arange(500), 3), counter_hash(500, 3))


def test_every_bit_of_a_hash_is_even() -> None:
    hashes = keyed_hash(np.arange(20_000), key64("bits"))
    ones = [int((hashes >> np.uint64(bit) & np.uint64(1)).sum()) for bit in range(64)]
    assert max(abs(count - 10_000) for count in ones) < 4.5 * np.sqrt(20_000) / 2


def test_positions_are_spread_evenly() -> None:
    places = np.stack([permutation(1_000, key64("test", key)) for key in range(200)])
    assert abs(places.mean(0) - 499.5).max() < 5 * 1_000 / np.sqrt(12 * 200)
    assert np.abs(np.corrcoef(places) - np.eye(200)).max() < 0.2


def test_streams_never_change() -> None:
    assert key64("lmms", 0, 1) == int.from_bytes(hashlib.sha256(b"lmms|0|1").digest()[:8], "little")
    assert digest(counter_hash(1_000, 2**64 - 1)) == "09cd2bd535cfd009"
    assert digest(keyed_hash(np.arange(0, 10**12, 10**9), key64("lmms", 8))) == "0ede8dd0916737bc"
    assert digest(permutation(100_000, key64("lmms", 7))) == "a78f3063f8a670b6"
