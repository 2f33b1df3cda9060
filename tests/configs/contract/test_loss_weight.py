"""What a target token counts, held against the definition, token by token."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from lmms.configs.contract.loss_rule import TOTALS, LossWeight
from lmms.configs.contract.loss_weight import span_weights, total_weights
from lmms.configs.contract.pack import PACK_TABLE, Pack, join_packs

RULES: tuple[LossWeight, ...] = get_args(LossWeight)


def random_pack(seed: int, conversations: int) -> Pack:
    """Conversations of up to four spans, some of which touch, with weights of all sizes."""
    rng = np.random.default_rng(seed)
    ends, spans, weights = [0], [], []
    for _ in range(conversations):
        at = ends[-1] + 1
        for _ in range(int(rng.integers(1, 5))):
            start = at + int(rng.integers(0, 2))
            at = start + int(rng.integers(1, 30))
            spans.append((start, at))
            weights.append(10 ** rng.uniform(-3, 3))
        ends.append(at + int(rng.integers(0, 3)))
    return Pack(
        input_ids=np.zeros(ends[-1], np.int32),
        cu_seqlens=np.array(ends, np.int32),
        targets=np.array(spans, np.int32),
        target_weights=np.array(weights),
        sample_weights=10 ** rng.uniform(-3, 3, conversations),
        samples=np.zeros((conversations, 2), np.int64),
        media=(),
        media_bytes=b"",
    )


def defined(pack: Pack, rule: LossWeight) -> Iterator[float]:
    """The weight of each target token in turn."""
    for segment, s in enumerate(pack.sample_weights.tolist()):
        start, end = pack.cu_seqlens[segment : segment + 2].tolist()
        tokens = [
            m
            for (a, b), m in zip(pack.targets.tolist(), pack.target_weights.tolist(), strict=True)
            for _ in range(a, b)
            if start <= a < end
        ]
        divisor = {"token": 1.0, "conversation": sum(tokens), "sqrt": math.sqrt(sum(tokens))}[rule]
        yield from (s * m / divisor for m in tokens)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(20))
def test_every_token_counts_as_defined_and_the_sidecar_holds_the_sum(rule: LossWeight, seed: int) -> None:
    pack = random_pack(seed, 1 + seed)
    found = np.repeat(span_weights(pack, rule), np.diff(pack.targets)[:, 0])
    expected = list(defined(pack, rule))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert total_weights(pack)[TOTALS[rule]] == pytest.approx(math.fsum(expected), rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_conversations_count_the_same_in_any_pack(rule: LossWeight) -> None:
    packs = [random_pack(seed, 4) for seed in range(5)]
    joined = join_packs(packs)
    assert span_weights(joined, rule).tolist() == [w for pack in packs for w in span_weights(pack, rule).tolist()]
    apart = [total_weights(pack)[TOTALS[rule]] for pack in packs]
    assert total_weights(joined)[TOTALS[rule]] == pytest.approx(sum(apart), rel=1e-14)


def test_by_conversation_each_counts_its_own_weight_to_the_last_digit() -> None:
    pack = random_pack(0, 30)
    assert total_weights(pack)["conversation_weight"] == math.fsum(pack.sample_weights)


def test_a_conversation_without_targets_counts_nothing() -> None:
    pack = random_pack(1, 2)
    empty = replace(
        pack,
        input_ids=np.zeros(len(pack.input_ids) + 5, np.int32),
        cu_seqlens=np.append(pack.cu_seqlens, pack.cu_seqlens[-1] + 5).astype(np.int32),
        sample_weights=np.append(pack.sample_weights, 7.0),
        samples=np.zeros((3, 2), np.int64),
    )
    assert total_weights(empty) == total_weights(pack)
    assert np.isfinite([span_weights(empty, rule) for rule in RULES]).all()


def test_weights_of_1_count_target_tokens_conversations_and_roots_of_lengths() -> None:
    pack = random_pack(2, 3)
    plain = replace(pack, target_weights=np.ones(len(pack.targets)), sample_weights=np.ones(3))
    lengths = [len([t for t in range(a, b) if any(x <= t < y for x, y in pack.targets.tolist())])
               for a, b in zip(pack.cu_seqlens.tolist(), pack.cu_seqlens[1:].tolist(), strict=False)]  # fmt: skip
    totals = total_weights(plain)
    assert (totals["target_weight"], totals["conversation_weight"]) == (sum(lengths), 3)
    assert totals["sqrt_weight"] == pytest.approx(sum(map(math.sqrt, lengths)), rel=1e-14)


def test_the_sidecar_has_a_column_for_each_rule() -> None:
    assert set(TOTALS) == set(RULES)
    assert all(PACK_TABLE[column] == "float64" for column in TOTALS.values())
