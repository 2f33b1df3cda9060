"""Packing: every sample once, budgets held, equal to BFD done sample by sample, and the same for ever."""

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.errors import BuildError
from lmms.prep.planning.tight import ALGORITHM, Plan, plan_packs

Samples = list[tuple[int, int]]
SEQ_LEN, MAX_PATCHES = 24, 30

token_counts = st.one_of(st.integers(1, SEQ_LEN), st.sampled_from([1, 2, SEQ_LEN // 2, SEQ_LEN]))
patch_counts = st.one_of(st.integers(1, MAX_PATCHES), st.sampled_from([1, 4, MAX_PATCHES]))
text = st.tuples(token_counts, st.just(0))
media = st.tuples(token_counts, patch_counts)
sample_lists = st.one_of(*(st.lists(kind, max_size=60) for kind in (text, media, text | media)))


def plan_of(samples: Samples, seed: int = 0) -> Plan:
    tokens, patches = np.array(samples, np.int32).reshape(-1, 2).T
    return plan_packs(tokens, patches, SEQ_LEN, MAX_PATCHES, seed)


def pack_fills(plan: Plan, samples: Samples) -> list[tuple[int, int]]:
    fills = np.zeros((plan.num_packs, 2), np.int64)
    np.add.at(fills, plan.pack_of, np.array(samples, np.int64).reshape(-1, 2))
    return [(tokens, patches) for tokens, patches in fills.tolist()]


def naive_bfd(samples: Samples) -> list[tuple[int, int]]:
    """(tokens, patches) of each bin of best-fit decreasing, one sample at a time."""

    def size(sample: tuple[int, int]) -> tuple[int, int, int]:
        tokens, patches = sample
        return max(tokens * MAX_PATCHES, patches * SEQ_LEN), tokens, patches

    spaces: list[tuple[int, int]] = []
    groups = [s for s in samples if s[1]], [s for s in samples if not s[1]]
    for tokens, patches in (s for group in groups for s in sorted(group, key=size, reverse=True)):
        holding = [space for space in spaces if space[0] >= tokens and space[1] >= patches]
        best = min(holding, default=(SEQ_LEN, MAX_PATCHES))
        if holding:
            spaces.remove(best)
        spaces.append((best[0] - tokens, best[1] - patches))
    return [(SEQ_LEN - tokens, MAX_PATCHES - patches) for tokens, patches in spaces]


@given(sample_lists)
@settings(max_examples=500, deadline=None)
def test_packs_are_those_of_bfd_done_sample_by_sample(samples: Samples) -> None:
    assert sorted(pack_fills(plan_of(samples), samples)) == sorted(naive_bfd(samples))


@given(sample_lists, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_sample_is_in_one_pack_and_no_pack_exceeds_a_budget(samples: Samples, seed: int) -> None:
    plan = plan_of(samples, seed)
    assert sorted(plan.order.tolist()) == list(range(len(samples)))
    assert plan.starts[0] == 0
    assert plan.starts[-1] == len(samples)
    for pack in range(plan.num_packs):
        members = plan.order[plan.starts[pack] : plan.starts[pack + 1]]
        assert len(members) > 0
        assert (np.diff(members) > 0).all(), "samples of a pack stand in input order"
        assert (plan.pack_of[members] == pack).all()
    assert all(t <= SEQ_LEN and p <= MAX_PATCHES for t, p in pack_fills(plan, samples))


def test_text_fills_the_room_that_media_leave() -> None:
    plan = plan_of([(10, MAX_PATCHES), (10, MAX_PATCHES), (14, 0), (8, 0), (6, 0)])
    assert plan.num_packs == 2
    assert plan.pack_of[3] == plan.pack_of[4] != plan.pack_of[2]


def test_patch_budget_opens_a_pack_where_tokens_would_fit() -> None:
    assert plan_of([(2, 20), (2, 20)]).num_packs == 2
    assert plan_of([(2, 15), (2, 15)]).num_packs == 1


def test_samples_of_the_full_length_have_a_pack_each() -> None:
    plan = plan_of([(SEQ_LEN, 0), (SEQ_LEN, MAX_PATCHES), (SEQ_LEN, 0)])
    assert sorted(plan.pack_of.tolist()) == [0, 1, 2]


def test_no_samples_make_no_packs() -> None:
    plan = plan_of([])
    assert (plan.num_packs, plan.starts.tolist(), len(plan.order), len(plan.pack_of)) == (0, [0], 0, 0)


def test_text_needs_no_patch_budget() -> None:
    lengths = np.array([3, 5, 8], np.int32)
    assert plan_packs(lengths, np.zeros(3, np.int32), 8, 0, 0).num_packs == 2


def test_very_long_packs_are_possible() -> None:
    lengths = np.array([2**20, 2**19, 2**19 - 1, 1], np.int32)
    plan = plan_packs(lengths, np.array([0, 2**22, 0, 0], np.int32), 2**20, 2**22, 0)
    assert plan.num_packs == 2


@pytest.mark.parametrize("sample", [(SEQ_LEN + 1, 0), (1, MAX_PATCHES + 1), (0, 0), (1, -1)])
def test_sample_that_no_pack_holds_is_an_error_that_names_it(sample: tuple[int, int]) -> None:
    with pytest.raises(BuildError, match=rf"sample 1: {sample[0]} tokens and {sample[1]} patches.*1 to {SEQ_LEN}"):
        plan_of([(1, 0), sample])


def real_like(n: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Lengths with a long tail and one image in two samples, by integer arithmetic alone."""
    i = np.arange(n, dtype=np.int64)
    tokens = 1 + (i * i * 7919 + i * 104729) % 65521 % (1 + (i * 31337) % 4096)
    patches = np.where(i % 2 == 0, np.minimum(4 * tokens, (i * 2741) % 5000), 0)
    return tokens.astype(np.int32), patches.astype(np.int32)


def test_algorithm_of_this_name_never_changes_its_result() -> None:
    tokens, patches = real_like(20_000)
    plan = plan_packs(tokens, patches, 4096, 8192, seed=7)
    assert ALGORITHM == "bfd/1"
    assert hashlib.sha256(plan.pack_of.astype("<i8").tobytes()).hexdigest()[:16] == "cd5c6cbddc0a96e5"
    assert plan.num_packs == -(-int(tokens.sum()) // 4096)


def test_seed_permutes_packs_and_leaves_their_content() -> None:
    tokens, patches = real_like(2_000)
    plans = [plan_packs(tokens, patches, 4096, 8192, seed) for seed in (0, 1)]
    contents = [[p.order[a:b].tolist() for a, b in zip(p.starts[:-1], p.starts[1:], strict=True)] for p in plans]
    assert contents[0] != contents[1]
    assert sorted(contents[0]) == sorted(contents[1])


def test_packs_are_not_left_sorted_by_length() -> None:
    tokens, patches = real_like(20_000)
    plan = plan_packs(tokens, patches, 4096, 8192, seed=0)
    segments = np.diff(plan.starts)
    first, second = segments[: len(segments) // 2].mean(), segments[len(segments) // 2 :].mean()
    assert abs(first - second) < 0.1 * segments.mean()
