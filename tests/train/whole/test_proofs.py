"""The promise: what a step trains on is the same on any number of ranks, loaders and packs a pass, from any resume."""

import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.data.order import step_packs
from lmms.train.data.phases import order_of, read_phases
from lmms.train.data.sets import open_sets, packs_digest
from lmms.train.run import train
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

PACKS, GLOBAL_PACKS, STEPS = 11, 4, 9
"""Epochs end within steps 3, 6 and 9, and after none."""

WORLDS: dict[int, list[tuple[int, int]]] = {
    1: [(1, 1), (3, 3), (0, 4)],
    2: [(0, 1), (1, 2), (3, 1)],
    4: [(0, 1), (1, 1), (0, 2)],
}
"""Ranks -> (loader processes, packs a pass) of the runs on them."""

RESUMES = {2: (1, 5), 4: (0, 3, 6)}
"""Ranks -> steps of the run on one rank after which runs on so many ranks go on; epochs end in steps 3 and 6."""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("proofs")
    return write_run(folder, "qwen3_vl", packs=PACKS) | {"max_steps": STEPS, "save_steps": 1, "stall_s": 120.0}


@pytest.fixture(scope="module")
def undisturbed(settings: dict[str, Any]) -> Path:
    """One rank, no loader process, all packs of a step in one pass; a checkpoint after every step."""
    config = run_config(settings, output=settings["output"] + "/undisturbed", data__micro_packs=GLOBAL_PACKS)
    train(config, silent)
    return Path(config.output)


def changed(settings: dict[str, Any], name: str, workers: int, micro_packs: int) -> TrainConfig:
    output = f"{settings['output']}/{name}"
    return run_config(settings, output=output, data__workers=workers, data__micro_packs=micro_packs, save_steps=100)


def resumed(settings: dict[str, Any], undisturbed: Path, world: int, step: int) -> TrainConfig:
    """A run that stands where the undisturbed one stood after `step`."""
    config = changed(settings, f"from{step}on{world}", 0, 1)
    if step:
        shutil.copytree(undisturbed / checkpoint_name(step), Path(config.output) / checkpoint_name(step))
    return config


@pytest.fixture(scope="module")
def runs(settings: dict[str, Any], undisturbed: Path) -> dict[str, Path]:
    """Every run of WORLDS, `ranks x loaders x packs a pass`, and of RESUMES, `from step on ranks`."""
    found = {}
    for world, chosen in WORLDS.items():
        configs = {
            f"{world} x {workers} x {micro}": changed(settings, f"{world}x{workers}x{micro}", workers, micro)
            for workers, micro in chosen
        }
        for step in RESUMES.get(world, ()):
            configs[f"from {step} on {world}"] = resumed(settings, undisturbed, world, step)
        if world == 1:
            for config in configs.values():
                train(config, silent)
        else:
            train_on_ranks(list(configs.values()), world)
        found |= {name: Path(config.output) for name, config in configs.items()}
    return found


def test_digests_are_those_of_the_order_and_each_epoch_holds_each_pack_once(
    settings: dict[str, Any], undisturbed: Path
) -> None:
    (phase,) = read_phases(undisturbed)
    sets = open_sets([settings["data.shards"]])
    order = order_of(sets, phase)
    sequence = np.concatenate([step_packs(order, step * GLOBAL_PACKS) for step in range(STEPS)])
    digests = [
        f"{packs_digest(sets.sidecars[0].xxh3[sequence[a:b]]):016x}"
        for a, b in pairwise(range(0, (STEPS + 1) * GLOBAL_PACKS, GLOBAL_PACKS))
    ]
    assert [line["digest"] for line in read_metrics(undisturbed)] == digests
    assert len(set(digests)) == STEPS
    for epoch in range(3):
        assert sorted(sequence[epoch * PACKS : (epoch + 1) * PACKS].tolist()) == list(range(PACKS))


@pytest.mark.parametrize("name", [f"{world} x {a} x {b}" for world, chosen in WORLDS.items() for a, b in chosen])
def test_every_step_is_the_same_on_any_ranks_loaders_and_passes(
    runs: dict[str, Path], undisturbed: Path, name: str
) -> None:
    found, expected = read_metrics(runs[name]), read_metrics(undisturbed)
    assert [(line["step"], line["digest"], line["position"]) for line in found] == [
        (line["step"], line["digest"], line["position"]) for line in expected
    ]
    assert_same_steps(found, expected)


@pytest.mark.parametrize(("world", "step"), [(world, step) for world, steps in RESUMES.items() for step in steps])
def test_a_run_on_one_rank_goes_on_on_others_as_if_nothing_had_happened(
    runs: dict[str, Path], undisturbed: Path, world: int, step: int
) -> None:
    output = runs[f"from {step} on {world}"]
    assert_same_steps(read_metrics(output), read_metrics(undisturbed)[step:])
    last = checkpoint_name(STEPS)
    assert_same_tensors(read_tensors(output / last), read_tensors(undisturbed / last))


@pytest.mark.parametrize("step", [1, 2, 3, 6, 8])
def test_on_the_same_ranks_a_resumed_run_is_the_same_bit_for_bit(
    settings: dict[str, Any], undisturbed: Path, tmp_path: Path, step: int
) -> None:
    shutil.copytree(undisturbed / checkpoint_name(step), tmp_path / checkpoint_name(step))
    config = run_config(settings, output=str(tmp_path), data__micro_packs=GLOBAL_PACKS, save_steps=100)
    train(replace(config, save_async=False), silent)
    assert read_metrics(tmp_path) == read_metrics(undisturbed)[step:]
    found = read_tensors(tmp_path / checkpoint_name(STEPS))
    for name, tensor in read_tensors(undisturbed / checkpoint_name(STEPS)).items():
        assert torch.equal(found[name], tensor), name


def test_a_run_goes_from_one_rank_to_two_to_four_and_back(settings: dict[str, Any], undisturbed: Path) -> None:
    config = replace(changed(settings, "chain", 0, 1), save_steps=1)
    for world, last in ((1, 2), (2, 4), (4, 7)):
        # max_steps is part of the schedule; the run is stopped by the step at which its checkpoints end.
        if world == 1:
            train(config, silent)
        else:
            train_on_ranks([config], world)
        for path in Path(config.output).glob("step-*"):
            if path.name > checkpoint_name(last):
                shutil.rmtree(path)
    train(config, silent)
    assert_same_steps(read_metrics(config.output), read_metrics(undisturbed))
