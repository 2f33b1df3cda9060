"""lmms inspect order and step: what they print is what the order is and what the shards hold."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from lmms.cli.main import app
from lmms.configs.contract.costs import ModelCost
from lmms.configs.contract.manifest import read_manifest
from lmms.configs.stores.store import LocalStore
from lmms.configs.words import counted
from lmms.train.data.costs import table_costs
from lmms.train.data.mixture import PERIOD, Phase
from lmms.train.data.order import by_cost, step_packs
from lmms.train.data.phases import SetShare, write_phases
from lmms.train.data.sets import Sets, make_order, open_sets, packs_digest
from lmms.train.model.flops import model_cost
from lmms.train.model.folder import model_of
from lmms.train.watch.records import records_of
from tests.kit.folders import small_shards
from tests.kit.phases import first_phase
from tests.kit.processes import loaded_by


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_shards(tmp_path_factory.mktemp("order"))


@pytest.fixture(scope="module")
def sets(shards: Path) -> Sets:
    return open_sets([shards])


@pytest.fixture(scope="module")
def cost(shards: Path) -> ModelCost:
    return model_cost(model_of(Path(read_manifest(LocalStore(shards)).model), "none"))


def lmms(*words: object, width: int = 160) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result


def order_lines(*words: object) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lmms("inspect", "order", *words, "--json").output.splitlines()]


def test_json_is_one_line_a_step_to_the_end_of_the_epochs(shards: Path, sets: Sets, cost: ModelCost) -> None:
    total = len(sets.tokens)
    lines = order_lines(shards, "data.global_packs=4", "--ranks", 2, "--epochs", 2, "--seed", 3)
    order = make_order(sets, Phase(), cost, 3, 4)
    assert [(line["step"], line["position"]) for line in lines] == [(i + 1, 4 * i) for i in range(-(-2 * total // 4))]
    for line in lines:
        packs = by_cost(order, step_packs(order, line["position"]))
        assert line["digest"] == f"{packs_digest(sets.sidecars[0].xxh3[packs]):016x}"
        assert line["tokens"] == sets.tokens[packs].sum()
        costs = order.costs[packs].astype(float)
        assert line["balance"] == pytest.approx(costs.sum() / 2 / (costs[0] + costs[2]))
        assert 0 < line["balance_random"] <= 1
        assert sum(line["sources"].values()) == pytest.approx(1)
        own = packs[0::2]
        assert line["rank_reads"] == {
            "packs": 2,
            "shards": len(set(sets.sidecars[0].shard[own].tolist())),
            "bytes": sets.sidecars[0].bytes[own].sum(),
        }


def test_shares_of_sources_are_those_of_the_data_set_over_an_epoch(shards: Path, sets: Sets) -> None:
    (line,) = order_lines(shards, f"data.global_packs={len(sets.tokens)}")
    manifest = sets.datasets[0].manifest
    expected = {Path(source["name"]).name: source["tokens"] / manifest.counts["tokens"] for source in manifest.sources}
    assert line["sources"] == pytest.approx(expected)


def test_group_and_seed_decide_the_order_and_ranks_do_not(shards: Path) -> None:
    words = (shards, "data.global_packs=4")
    digests = [
        [line["digest"] for line in order_lines(*words, *more)] for more in ((), ("data.group_packs=2",), ("--seed", 1))
    ]
    assert len(set(map(tuple, digests))) == 3
    assert [
        line["digest"] for line in order_lines(*words, "--ranks", 4, "data.workers=0", "data.micro_packs=2")
    ] == digests[0]


def test_costs_are_those_of_the_parts_that_are_trained(shards: Path) -> None:
    words = (shards, "data.global_packs=4", "--ranks", 4)
    balances = {tuple(line["balance"] for line in order_lines(*words, *more)) for more in ((), ("train.llm=frozen",))}
    assert len(balances) == 2


def test_several_sets_are_mixed_by_their_packs(shards: Path, tmp_path: Path) -> None:
    other = small_shards(tmp_path, 10)
    sets = open_sets([shards, other])
    lines = order_lines(shards, other, f"data.global_packs={len(sets.tokens)}")
    assert {name[:6] for name in lines[0]["sources"]} == {"set 0,", "set 1,"}
    of_second = sum(share for name, share in lines[0]["sources"].items() if name.startswith("set 1,"))
    assert of_second == pytest.approx(sets.sidecars[1].tokens.sum() / sets.tokens.sum(), rel=0.2)


def test_the_screen_says_what_a_person_decides_by(shards: Path, sets: Sets) -> None:
    total = len(sets.tokens)
    output = lmms(
        "inspect", "order", shards, "data.global_packs=4", "--ranks", 4, "data.group_packs=4", "--epochs", 3
    ).output
    assert f"{total:,} packs in {counted(len(sets.datasets[0].shards), 'shard')}" in output
    assert "groups of 4" in output
    assert "in random order" in output
    assert f"repeated {-(-65_536 // total):,} times to fill a window" in output
    table = output[output.index("packs a rank") :].splitlines()[1:13]
    rows = [[float(cell.rstrip("%")) for cell in line.split()] for line in table]
    assert [row[:2] for row in rows] == [[world, packs] for world in (8, 64, 512) for packs in (1, 2, 4, 8)]
    for _, packs, random, alone, grouped, twice in rows:
        assert grouped <= min(random, alone)
        assert twice >= grouped
        assert packs < 4 or alone <= random


@pytest.fixture
def run(shards: Path, sets: Sets, cost: ModelCost, tmp_path: Path) -> Path:
    share = SetShare(shards=str(shards), index=sets.datasets[0].index_hash, turns=PERIOD, cursor=0)
    phase = first_phase([share], seed=3, cost=cost)
    write_phases(tmp_path, [phase])
    return tmp_path


def test_the_records_of_a_step_are_one_json_line_each(run: Path, shards: Path) -> None:
    lines = [json.loads(line) for line in lmms("inspect", "step", run, 2, "--json").output.splitlines()]
    records = records_of(run, 2).records
    assert lines == [{**asdict(record), "shards": str(shards)} for record in records]
    (second,) = (line for line in order_lines(shards, "data.global_packs=4", "--seed", 3) if line["step"] == 2)
    assert sum(line["tokens"] for line in lines) == second["tokens"]


def test_a_step_is_inspected_without_torch(run: Path) -> None:
    assert loaded_by("inspect", "step", run, 1) == set()


@pytest.mark.parametrize("words", [["nowhere"], ["nowhere", "data.global_packs=4", "model.path=nobody"]])
def test_an_order_that_cannot_be_shown_is_refused_without_torch(words: list[str]) -> None:
    """The costs of packs follow from the model, which is opened when the shards are."""
    assert loaded_by("inspect", "order", *words, status=1) == set()


def test_the_records_of_a_step_are_shown_up_to_a_number(run: Path) -> None:
    output = lmms("inspect", "step", run, 1).output
    found = records_of(run, 1)
    assert f"{found.digest}, metrics.jsonl has no line of this step" in output
    assert Path(found.records[0].source).name in output
    shown = output[output.index("segment") :].splitlines()[1:]
    rows = [line for line in shown if Path(line.split()[-1]).suffix == ".jsonl"]
    assert len(rows) == min(len(found.records), 40)
    assert ("--json prints all" in output) == (len(found.records) > 40)


def test_real_conversations_and_pictures_lose_at_most_two_percent(
    shared: Path, model_folders: dict[str, Path], tmp_path: Path
) -> None:
    """Four packs a rank and more: 2 %, one: 4 %, in groups of as many as ranks. A part of the real records, as 16k."""
    from lmms.configs.settings.prep import PrepConfig
    from lmms.prep.build import build_shards
    from lmms.train.data.balance import expected_loss

    text = [str(shared / "data" / "text" / f"{name}.jsonl.zst") for name in ("gsm8k", "swe_agent", "llamafactory_demo")]
    images = [str(path) for path in sorted((shared / "data" / "image").glob("[rt]*/records.jsonl.zst"))]
    build_shards(
        PrepConfig(
            sources=(*text, *images),
            model=str(model_folders["qwen3-vl"]),
            seq_len=16_384,
            plan="tight",
            out=str(tmp_path / "out"),
            max_rejects=1.0,
            workers=0,
        )
    )
    sets = open_sets([tmp_path / "out"])
    cost = model_cost(model_of(model_folders["qwen3-vl"], "none"))
    order = make_order(sets, Phase(), cost, 0, 8)
    costs = np.concatenate([table_costs(cost, sidecar) for sidecar in sets.sidecars], axis=1)
    assert costs[1].sum() > 0
    for world in (8, 64, 512):
        for packs_a_rank, most in ((1, 0.04), (4, 0.02)):
            found = expected_loss(order, costs, world, packs_a_rank, world)
            assert found.ordered < most < found.random
