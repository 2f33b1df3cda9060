"""Whole runs whose packs are shared by two or by four ranks are one rank's: losses, norms, weights, digests."""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.errors import ConfigError
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.data.phases import order_of, read_phases
from lmms.train.data.sets import open_sets
from lmms.train.data.steps import RankShare, plan_steps
from lmms.train.parallel.world import start_world, stop_world
from lmms.train.run import train
from lmms.train.start import start
from tests.kit.runs import (
    assert_same_steps,
    assert_same_tensors,
    read_metrics,
    read_tensors,
    run_config,
    silent,
    train_on_ranks,
    write_run,
)

STEPS = 3

CASES: dict[str, dict[str, Any]] = {
    "text": {"family": "qwen3", "tied": True},
    "windows": {"family": "qwen2_5_vl", "eval.every_steps": 2},
    "deep features": {"family": "qwen3_vl", "data.micro_packs": 2},
    "vision alone": {
        "family": "qwen3_vl",
        "train": {"llm": "frozen", "aligner": "frozen"},
        "memory.recompute": "none",
        "data.workers": 1,
    },
}
"""All models have two key heads: fewer than four ranks."""

RANKS = 4

SEQUENCE = {"4": 4, "2 x 2": 2}
"""parallel.sequence in each world of four ranks: one group, and two that train on packs of their own."""

RUNS = [(case, world) for case in CASES for world in SEQUENCE if (case, world) != ("vision alone", "4")]

HALF_PRECISION = "4 in bf16"
"""An output of the case "deep features"."""


@dataclass(frozen=True)
class Runs:
    """One case: its settings, and the folder of an output for "1", of one rank, and each of SEQUENCE."""

    settings: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    """All of RUNS, and one in half precision."""
    cases = {}
    for name, case in CASES.items():
        folder = tmp_path_factory.mktemp("run")
        settings = write_run(folder, case["family"], tied=case.get("tied", False))
        settings |= {"max_steps": STEPS, "save_steps": 2} | {
            key: case[key] for key in case if key not in ("family", "tied")
        }
        if "eval.every_steps" in case:
            settings["eval.shards"] = settings["data.shards"]
        cases[name] = Runs(settings, folder)
        train(run_config(settings, output=str(folder / "1")), silent)
    configs = [
        run_config(cases[name].settings, output=str(cases[name].folder / world), parallel__sequence=SEQUENCE[world])
        for name, world in RUNS
    ]
    deep = cases["deep features"]
    half = deep.settings | {"model.precision": "bf16", "max_steps": 1, "output": str(deep.folder / HALF_PRECISION)}
    train_on_ranks([*configs, run_config(half, parallel__sequence=4)], RANKS)
    return cases


@pytest.mark.parametrize(("case", "world"), RUNS)
def test_shared_packs_give_the_steps_and_the_weights_of_one_rank(runs: dict[str, Runs], case: str, world: str) -> None:
    """Steps: losses, norms by part, digests, evaluations. With the weights, AdamW's averages of the gradients."""
    found, expected = runs[case].folder / world, runs[case].folder / "1"
    assert len(read_metrics(found)) == STEPS
    steps = [read_metrics(output) for output in (found, expected)]
    by_source = [line.pop("eval_loss_by_source") for lines in steps for line in lines]
    assert_same_steps(*steps)
    for ours, theirs in zip(by_source[:STEPS], by_source[STEPS:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS)) for output in (found, expected)))


def test_a_group_without_images_runs_beside_one_with_images(runs: dict[str, Runs]) -> None:
    """So the case "2 x 2" shows that no rank waits for another then."""
    case = runs["vision alone"]
    (phase,) = read_phases(case.folder / "2 x 2")
    sets = open_sets([case.settings["data.shards"]])
    order = order_of(sets, phase)
    plans = [islice(plan_steps(order, sets, RankShare(group, 2)), STEPS) for group in (0, 1)]
    passes = [[bool(sets.media[request.places[0].pack]) for plan in one for request in plan.passes] for one in plans]
    assert {(True, False), (False, False)} <= set(zip(*passes, strict=True))


@pytest.mark.parametrize("case", ["text", "deep features"])
def test_one_rank_goes_on_from_shared_packs_and_reads_what_they_would(
    runs: dict[str, Runs], case: str, tmp_path: Path
) -> None:
    shared = runs[case].folder / "2 x 2"
    events: list[object] = []
    config = run_config(runs[case].settings, output=str(tmp_path), resume=str(shared / checkpoint_name(2)))
    train(config, events.append)
    assert "changed since the checkpoint: parallel.sequence was 2, is 1" in events
    (line,), expected = read_metrics(tmp_path), read_metrics(shared)[-1]
    assert line["step"] == STEPS
    assert line["digest"] == expected["digest"]
    assert_same_steps([line], [expected])
    assert_same_tensors(*(read_tensors(output / checkpoint_name(STEPS)) for output in (tmp_path, shared)))


def test_shared_packs_compute_in_bf16(runs: dict[str, Runs]) -> None:
    (found,) = read_metrics(runs["deep features"].folder / HALF_PRECISION)
    expected = read_metrics(runs["deep features"].folder / "1")[0]
    assert found["loss"] == pytest.approx(expected["loss"], rel=2e-2)
    assert found["loss"] != expected["loss"]


def test_ranks_that_do_not_divide_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    config = run_config(write_run(tmp_path, "qwen3"), parallel__sequence=2)
    with pytest.raises(ConfigError, match=r"parallel\.sequence is 2, but there are 1 ranks"):
        train(config, silent)
    assert not Path(config.output).exists()


def test_heads_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    config = run_config(write_run(tmp_path, "qwen3"), parallel__sequence=2)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_attention_heads": 3, "num_key_value_heads": 1}))
    world = start_world("cpu")
    try:
        with pytest.raises(ConfigError, match=r"parallel\.sequence is 2, but the model has 3 attention heads"):
            start(config, Path(config.output), world, silent, silent)
    finally:
        stop_world()
