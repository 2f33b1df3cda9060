"""A run is the same however it is carried out: each row of the table reports and ends with what its case does on one
rank, losses, norms, digests, evaluations and weights. All rows on so many ranks share one start of them."""

import json
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.data.order import step_packs
from lmms.train.data.phases import order_of, read_phases
from lmms.train.data.sets import open_sets, packs_digest
from lmms.train.data.steps import RankShare, plan_steps
from lmms.train.run import train
from tests.kit.model.models import part_of
from tests.kit.ranks import free_port, on_ranks
from tests.kit.runs import (
    assert_same_steps,
    assert_same_tensors,
    read_metrics,
    read_tensors,
    run_config,
    silent,
)
from tests.train.same_run.table import (
    CASES,
    LAYOUTS,
    ONE,
    ROWS,
    SHARDED,
    STEPS,
    UNITS,
    Row,
    row_config,
    train_rows,
    write_case,
)

FEW_BITS = ("adamw-bf16", "adamw-8bit")


@dataclass(frozen=True)
class Runs:
    """Where the runs of each case are, with its settings."""

    settings: dict[str, dict[str, Any]]
    folders: dict[str, Path]
    said: dict[str, list[object]]
    """What rows on one rank reported, by id."""

    def output(self, case: str, name: str) -> Path:
        return self.folders[case] / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every case on one rank, then all rows on two, on four, and those on one that may go on from them."""
    runs = Runs({}, {name: tmp_path_factory.mktemp("case") for name in CASES}, {})
    for name, case in CASES.items():
        runs.settings[name] = write_case(case, runs.folders[name])
        train(run_config(runs.settings[name], output=str(runs.output(name, ONE))), silent)
    configs = {row.id: row_config(row, runs.settings[row.case], runs.folders[row.case]) for row in ROWS}
    for ranks in (2, 4):
        of_world = [configs[row.id] for row in ROWS if row.ranks == ranks]
        on_ranks(train_rows, ranks, of_world, [free_port() for _ in of_world])
    for row in ROWS:
        if row.ranks == 1:
            runs.said[row.id] = []
            train(configs[row.id], runs.said[row.id].append)
    return runs


@pytest.mark.parametrize("row", [row for row in ROWS if row.close != "bf16"], ids=lambda row: row.id)
def test_a_run_carried_out_in_another_way_is_the_same(runs: Runs, row: Row) -> None:
    found, expected = runs.output(row.case, row.name), runs.output(row.case, row.like)
    steps, begin = max(line["step"] for line in read_metrics(expected)), row.begin[1] if row.begin else 0
    lines, others = read_metrics(found), [line for line in read_metrics(expected) if line["step"] > begin]
    assert len(lines) == steps - begin > 0
    tensors, weights = (read_tensors(output / checkpoint_name(steps)) for output in (found, expected))
    if row.close == "bits":
        assert lines == others
        assert tensors.keys() == weights.keys()
        assert [name for name in weights if not torch.equal(tensors[name], weights[name])] == []
    elif row.case == "muon in bf16":
        # Sums in bf16 taken in another order.
        names = ("loss", "grad_norm", "digest")
        assert_same_steps(
            *([{name: line[name] for name in names} for line in some] for some in (lines, others)), rel=1e-2
        )
    elif row.case in FEW_BITS:
        # A sum of gradients that is off in its last bit may turn into the next code: at most a part of a step of 1e-2.
        for name in weights:
            if name.startswith("model."):
                assert float((tensors[name] - weights[name]).abs().max()) < 1e-3, name
    elif row.case == "muon":
        # To orthogonalise makes much of a last bit where a matrix has small singular values.
        assert_same_steps(lines, others, rel=1e-4)
        assert_same_tensors(*({k: v for k, v in some.items() if k.startswith("model.")} for some in (tensors, weights)))
    else:
        assert_same_steps(lines, others)
        assert_same_tensors(tensors, weights)


@pytest.mark.parametrize("row", [row for row in ROWS if row.close == "bf16"], ids=lambda row: row.id)
def test_bf16_computes_with_fp32_weights(runs: Runs, row: Row) -> None:
    output = runs.output(row.case, row.name)
    (found,), expected = read_metrics(output), read_metrics(runs.output(row.case, ONE))[0]
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-2)
    assert found["loss"] != expected["loss"]
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.2)
    assert {tensor.dtype for tensor in read_tensors(output / checkpoint_name(1)).values()} == {torch.float32}


def test_bf16_on_two_ranks_is_not_the_same_bits(runs: Runs) -> None:
    """So the row "muon in bf16" shows that its losses fall alike although sums are rounded otherwise."""
    found, expected = (read_metrics(runs.output("muon in bf16", name)) for name in ("two from one", ONE))
    assert found != expected[2:]
    assert min(line["loss"] for line in expected) < 0.9 * expected[0]["loss"]


@pytest.mark.parametrize(
    ("case", "name", "readers"), [("images", "two", 2), ("vision alone", "four, packs shared by two", 2)]
)
def test_a_reader_without_images_stands_beside_one_with_images(runs: Runs, case: str, name: str, readers: int) -> None:
    """So the table shows that no rank waits for another then."""
    (phase,) = read_phases(runs.output(case, name))
    sets = open_sets([runs.settings[case]["data.shards"]])
    order = order_of(sets, phase)
    plans = [islice(plan_steps(order, sets, RankShare(k, readers)), STEPS) for k in range(readers)]
    shows = [
        [bool(sets.visual_tokens[request.places[0].pack]) for plan in one for request in plan.passes] for one in plans
    ]
    assert {(True, False), (False, False)} <= set(zip(*shows, strict=True))


def test_digests_are_those_of_the_order_and_each_epoch_holds_each_pack_once(runs: Runs) -> None:
    output, sets = runs.output("epochs", ONE), open_sets([runs.settings["epochs"]["data.shards"]])
    (phase,) = read_phases(output)
    order, lines = order_of(sets, phase), read_metrics(output)
    sequence = np.concatenate([step_packs(order, line["position"] - order.global_packs) for line in lines])
    steps = range(0, len(sequence) + 1, order.global_packs)
    digests = [f"{packs_digest(sets.sidecars[0].xxh3[sequence[a:b]]):016x}" for a, b in pairwise(steps)]
    assert [line["digest"] for line in lines] == digests
    assert len(set(digests)) == 9
    packs = len(sets.tokens)
    for epoch in range(3):
        assert sorted(sequence[epoch * packs : (epoch + 1) * packs].tolist()) == list(range(packs))


@pytest.mark.parametrize("name", SHARDED)
def test_the_settings_of_a_layout_reach_fsdp2(runs: Runs, name: str) -> None:
    """The last block is never resharded, nor is the root, which comes after it."""
    units = json.loads((runs.output("images", name) / UNITS).read_text())
    ranks, settings = LAYOUTS[name]
    copies = settings.get("parallel.replicate")
    mesh = [ranks] if copies is None else [copies, ranks // copies]
    policy = "CPUOffloadPolicy" if settings.get("parallel.offload", False) else "OffloadPolicy"
    reshard = [settings.get("parallel.reshard", True)] * (len(units) - 2) + [False, False]
    assert len(units) > 2
    assert units == [[mesh, policy, again] for again in reshard]


@pytest.mark.parametrize(
    ("case", "trained"),
    [("vision frozen", {"llm", "aligner"}), ("vision alone", {"vision"}), ("lora, full, frozen", {"llm", "aligner"})],
)
def test_frozen_weights_are_in_no_checkpoint(runs: Runs, case: str, trained: set[str]) -> None:
    names = read_tensors(runs.output(case, ONE) / checkpoint_name(STEPS), "model.")
    assert {part_of(CASES[case].family, name) for name in names} == trained


@pytest.mark.parametrize("case", ["text", "two packs a pass"])
def test_a_run_that_no_longer_shares_packs_says_so(runs: Runs, case: str) -> None:
    assert "changed since the checkpoint: parallel.sequence was 2, is 1" in runs.said[f"{case}: one from shared packs"]
