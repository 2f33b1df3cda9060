"""The counter hash: a permutation for any size, spread evenly, and the same for ever."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.hashing import counter_hash, key64, mix64, permutation


def digest(values: npt.NDArray[Any]) -> str:
    return hashlib.sha256(values.astype(values.dtype.newbyteorder("<")).tobytes()).hexdigest()[:16]


@given(st.integers(0, 2_000), st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permutation_holds_every_number_once(n: int, key: int) -> None:
    assert sorted(permutation(n, key).tolist()) == list(range(n))


def test_mixer_is_the_published_one() -> None:
    # fmix64 of MurmurHash3, worked out with Python's own integers
    def fmix64(x: int) -> int:
        for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            x = (x ^ (x >> 33)) * multiplier % 2**64
        return x ^ (x >> 33)

    values = [0, 1, 2**33, 2**63, 2**64 - 1, 0x123456789ABCDEF]
    assert mix64(np.array(values, np.uint64)).tolist() == [fmix64(x) for x in values]


def test_key_depends_on_the_tuple_and_not_on_its_sum() -> None:
    assert len({key64("order", seed, epoch) for seed in range(50) for epoch in range(50)}) == 2_500


def test_positions_are_spread_evenly() -> None:
    places = np.stack([permutation(1_000, key64("test", key)) for key in range(200)])
    assert abs(places.mean(0) - 499.5).max() < 5 * 1_000 / np.sqrt(12 * 200)
    assert np.abs(np.corrcoef(places) - np.eye(200)).max() < 0.2


def test_streams_never_change() -> None:
    assert key64("lmms", 0, 1) == int.from_bytes(hashlib.sha256(b"lmms|0|1").digest()[:8], "little")
    assert digest(counter_hash(1_000, 2**64 - 1)) == "09cd2bd535cfd009"
    assert digest(permutation(100_000, key64("lmms", 7))) == "a78f3063f8a670b6"
