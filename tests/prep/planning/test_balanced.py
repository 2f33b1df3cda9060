"""Packs of equal cost: every sample once, budgets held, as even as sample by sample, and the same for ever."""

import hashlib
import heapq

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmms.configs.contract.costs import ModelCost
from lmms.configs.errors import BuildError
from lmms.prep.packing import costs_beyond_tokens
from lmms.prep.planning.balanced import BALANCED, balanced_packs
from lmms.prep.planning.spread import Samples
from lmms.prep.planning.tight import Plan, plan_packs

SEQ_LEN, MAX_PATCHES = 24, 30

Rows = list[tuple[int, int, int]]
"""(tokens, patches, cost beyond tokens) of each sample."""

token_counts = st.one_of(st.integers(1, SEQ_LEN), st.sampled_from([1, 2, SEQ_LEN // 2, SEQ_LEN]))
patch_counts = st.one_of(st.just(0), st.integers(1, MAX_PATCHES))
costs = st.one_of(st.just(0), st.integers(0, 40), st.sampled_from([1, 1000]))
sample_lists = st.lists(st.tuples(token_counts, patch_counts, costs), max_size=60)


def samples_of(rows: Rows) -> Samples:
    return Samples(*np.array(rows, np.int32).reshape(-1, 3).T)


def plan_of(rows: Rows, more: float = 0.01, seed: int = 0) -> Plan:
    return balanced_packs(samples_of(rows), SEQ_LEN, MAX_PATCHES, seed, more)


def contents(plan: Plan, rows: Rows) -> list[Rows]:
    """The samples of each pack, sorted, and the packs sorted."""
    packs: list[Rows] = [[] for _ in range(plan.num_packs)]
    for pack, row in zip(plan.pack_of.tolist(), rows, strict=True):
        packs[pack].append(row)
    return sorted(sorted(pack) for pack in packs)


def skewed(n: int) -> Samples:
    """Lengths with a long tail; one sample in ten has patches, which cost much. By integer arithmetic alone."""
    i = np.arange(n, dtype=np.int64)
    tokens = 1 + (i * i * 7919 + i * 104729) % 65521 % (1 + (i * 31337) % 2048)
    patches = np.where(i % 10 == 0, np.minimum(4 * tokens, (i * 2741) % 4000), 0)
    return Samples(*(column.astype(np.int32) for column in (tokens, patches, tokens**2 // 8192 + patches // 2)))


def pack_costs(plan: Plan, samples: Samples) -> npt.NDArray[np.float64]:
    return np.bincount(plan.pack_of, weights=samples.tokens + samples.costs, minlength=plan.num_packs)


@given(sample_lists, st.sampled_from([0.0, 0.01, 0.25, 1.0]), st.integers(0, 3))
@settings(max_examples=500, deadline=None)
def test_every_sample_is_in_one_pack_and_no_budget_is_exceeded(rows: Rows, more: float, seed: int) -> None:
    plan = plan_of(rows, more, seed)
    assert sorted(plan.order.tolist()) == list(range(len(rows)))
    assert plan.pack_of[plan.order].tolist() == np.repeat(np.arange(plan.num_packs), np.diff(plan.starts)).tolist()
    for pack in range(plan.num_packs):
        members = plan.order[plan.starts[pack] : plan.starts[pack + 1]]
        assert len(members) > 0
        assert (np.diff(members) > 0).all(), "samples of a pack stand in input order"
    for pack_rows in contents(plan, rows):
        assert sum(tokens for tokens, _, _ in pack_rows) <= SEQ_LEN
        assert sum(patches for _, patches, _ in pack_rows) <= MAX_PATCHES
    samples = samples_of(rows)
    fewest = plan_packs(samples.tokens, samples.patches, SEQ_LEN, MAX_PATCHES, 0).num_packs
    assert plan.num_packs <= fewest * (1 + more)


@given(st.lists(token_counts, min_size=1, max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_packs_of_samples_that_differ_in_their_share_alone_do_not_depend_on_the_order_of_the_input(
    lengths: list[int], shuffled: "object"
) -> None:
    rows: Rows = [(length, 0, length * length) for length in lengths]
    other = list(rows)
    shuffled.shuffle(other)  # type: ignore[attr-defined]
    assert contents(plan_of(rows), rows) == contents(plan_of(other), other)


def test_of_equal_samples_the_first_goes_first() -> None:
    """So copies of a record come after all first copies where they stand behind them."""
    plan = plan_of([(12, 0, 9)] * 4, 0)
    assert plan.pack_of[0] != plan.pack_of[1]
    assert {plan.pack_of[0], plan.pack_of[1]} == {plan.pack_of[2], plan.pack_of[3]}


def one_by_one(samples: Samples, seq_len: int, max_patches: int, num_packs: int) -> npt.NDArray[np.int64]:
    """Cost of each pack by the rule itself: by falling share, each into the pack of least cost that has room."""
    mean = samples.costs.sum(dtype=np.int64) / num_packs
    shares = np.maximum.reduce([samples.tokens / seq_len, samples.patches / max_patches, samples.costs / mean])
    packs = [(0, pack) for pack in range(num_packs)]
    room, patch_room = np.full(num_packs, seq_len), np.full(num_packs, max_patches)
    totals = np.zeros(num_packs, np.int64)
    for i in np.argsort(-shares, kind="stable").tolist():
        full = []
        while room[packs[0][1]] < samples.tokens[i] or patch_room[packs[0][1]] < samples.patches[i]:
            full.append(heapq.heappop(packs))
        cost, pack = heapq.heappop(packs)
        room[pack] -= samples.tokens[i]
        patch_room[pack] -= samples.patches[i]
        totals[pack] += samples.tokens[i] + samples.costs[i]
        heapq.heappush(packs, (cost + int(samples.costs[i]), pack))
        for entry in full:
            heapq.heappush(packs, entry)
    return totals


def test_packs_are_as_even_as_those_of_the_rule_done_sample_by_sample() -> None:
    samples = skewed(5_000)
    plan = balanced_packs(samples, 4096, 16_384, seed=0, more_packs=0.02)
    costs, exact = pack_costs(plan, samples), one_by_one(samples, 4096, 16_384, plan.num_packs)
    assert costs.max() <= exact.max() * 1.01
    assert costs.std() <= exact.std() * 1.05


@pytest.mark.parametrize("more", [0.01, 0.05])
def test_packs_cost_more_alike_than_those_of_a_tight_plan(more: float) -> None:
    samples = skewed(20_000)
    tight = plan_packs(samples.tokens, samples.patches, 4096, 16_384, 0)
    plan = balanced_packs(samples, 4096, 16_384, 0, more)
    assert plan.num_packs <= tight.num_packs * (1 + more)
    spreads = [pack_costs(each, samples).std() / pack_costs(each, samples).mean() for each in (plan, tight)]
    assert spreads[0] < spreads[1] / 4


def test_a_pack_that_a_dear_sample_makes_dear_keeps_its_room_empty() -> None:
    """A picture costs as much as a full pack of text: the pack of the picture should hold nothing else."""
    picture, text = (1000, 4000, 4000), (40, 0, 4)
    rows: Rows = [picture] * 3 + [text] * 60_000
    plan = balanced_packs(samples_of(rows), 4096, 16_384, seed=0)
    assert set(np.bincount(plan.pack_of)[plan.pack_of[:3]].tolist()) == {1}


def test_pictures_are_in_all_packs_and_not_in_packs_of_their_own() -> None:
    samples = skewed(20_000)
    plan, tight = balanced_packs(samples, 4096, 16_384, 0), plan_packs(samples.tokens, samples.patches, 4096, 16_384, 0)
    shares = [
        np.bincount(p.pack_of[samples.patches > 0], minlength=p.num_packs).astype(bool).mean() for p in (plan, tight)
    ]
    assert shares[0] > 0.6
    assert shares[1] < 0.3


def test_samples_too_large_to_share_packs_have_the_plan_that_is_tight() -> None:
    rows: Rows = [(SEQ_LEN, 0, 100)] * 5 + [(13, 0, 3)] * 4
    assert plan_of(rows).num_packs == 9


def test_samples_that_fit_only_one_way_share_packs_that_way() -> None:
    """Spread by cost they would not fit: dear short samples in all packs leave no room for samples of a full pack."""
    rows: Rows = [(6, 0, 500)] * 8 + [(SEQ_LEN, 0, 10)] * 6
    assert plan_of(rows).num_packs == 8


def test_dear_short_samples_do_not_take_the_room_of_long_samples() -> None:
    """A third of the packs has a sample of the full length; short dear samples go to the other packs, all of them."""
    rows: Rows = [(SEQ_LEN, 0, 2)] * 100 + [(2, 0, 300)] * 200 + [(11, 0, 5)] * 400
    plan = plan_of(rows, 0.05)
    assert plan.num_packs <= 100 + 220
    dear = np.bincount(plan.pack_of[100:300], minlength=plan.num_packs)
    assert dear.max() == 1


def test_where_best_fit_packs_cost_more_alike_they_are_the_plan() -> None:
    """Pictures alone, of many sizes: their cost is their tokens, and packs that are full are equal."""
    i = np.arange(4000, dtype=np.int64)
    tokens = (124 + i * 2741 % 3000).astype(np.int32)
    samples = Samples(tokens, 4 * (tokens - 60), 3 * (tokens - 60))
    plan, tight = balanced_packs(samples, 16_384, 65_536, 0), plan_packs(tokens, samples.patches, 16_384, 65_536, 0)
    dearest = [np.sort(pack_costs(p, samples))[-p.num_packs // 64 :].mean() * p.num_packs for p in (plan, tight)]
    assert dearest[0] <= dearest[1]


def test_no_samples_make_no_packs() -> None:
    plan = plan_of([])
    assert (plan.num_packs, plan.starts.tolist(), len(plan.order), len(plan.pack_of)) == (0, [0], 0, 0)


@pytest.mark.parametrize("sample", [(SEQ_LEN + 1, 0, 0), (1, MAX_PATCHES + 1, 0), (0, 0, 0)])
def test_sample_that_no_pack_holds_is_an_error_that_names_it(sample: tuple[int, int, int]) -> None:
    with pytest.raises(BuildError, match=rf"sample 1: {sample[0]} tokens and {sample[1]} patches.*1 to {SEQ_LEN}"):
        plan_of([(1, 0, 0), sample])


def test_algorithm_of_this_name_never_changes_its_result() -> None:
    samples = skewed(20_000)
    plan = balanced_packs(samples, 4096, 8192, seed=7)
    assert BALANCED == "balanced/1"
    assert hashlib.sha256(plan.pack_of.astype("<i8").tobytes()).hexdigest()[:16] == "b14a6c8c52cadc05"


def test_seed_permutes_packs_and_leaves_their_content() -> None:
    samples = skewed(2_000)
    plans = [balanced_packs(samples, 4096, 8192, seed) for seed in (0, 1)]
    packs = [[p.order[a:b].tolist() for a, b in zip(p.starts[:-1], p.starts[1:], strict=True)] for p in plans]
    assert packs[0] != packs[1]
    assert sorted(packs[0]) == sorted(packs[1])


def test_samples_cost_what_the_sidecar_says_of_their_packs() -> None:
    cost = ModelCost(
        token=10.0,
        target=4.0,
        squared_length=0.5,
        patch=3.0,
        squared_image=0.25,
        squared_window=0.125,
        window=2,
        sound_position=1.5,
        squared_sound=0.0625,
    )
    names = ("tokens", "target_tokens", "patches", "squared_patches", "sound_positions", "squared_sounds")
    kind = [(name, "i8") for name in names]
    samples = np.array([(100, 30, 0, 0, 0, 0), (50, 5, 16, 256, 0, 0), (20, 1, 0, 0, 40, 800)], kind)
    assert costs_beyond_tokens(cost, samples).tolist() == [
        (30 * 4 + 100 * 100 // 2) // 10,
        round((5 * 4 + 50 * 50 / 2 + 16 * (3 + 0.125 * 4) + 256 * 0.25) / 10),
        round((4 + 20 * 20 / 2 + 40 * 1.5 + 800 * 0.0625) / 10),
    ]
