"""A run that goes on with another mixture or another G takes every set on from where it was."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from lmms.configs.contract.costs import ModelCost
from lmms.configs.errors import TrainError
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.train.data.mixture import PERIOD, draws
from lmms.train.data.phases import (
    PHASES_NAME,
    RunPhase,
    SetShare,
    go_on,
    phase_of_step,
    read_phases,
    run_steps,
    write_phases,
)
from tests.kit.phases import first_phase

COST = ModelCost(token=1.0, target=2.0, squared_length=3.0, patch=4.0, squared_image=5.0, squared_window=6.0, window=8)


def run_phase(global_packs: int = 8, **turns: int) -> RunPhase:
    """A phase from the start of a run; its sets are named by their index."""
    sets = tuple(SetShare(shards=f"/data/{name}", index=name, turns=n, cursor=0) for name, n in turns.items())
    return first_phase(sets, global_packs=global_packs, cost=COST, pass_packs=100, pack_tokens=50.0)


def config(**length: float) -> TrainConfig:
    values = {"model.path": "m", "data.shards": "s", "output": "o", **length}
    return load_config(TrainConfig, None, values=values)


def taken(phases: list[RunPhase], end: int) -> dict[str, list[int]]:
    """Positions of each set's own sequence that a run takes up to packs `end`."""
    found: dict[str, list[int]] = {}
    for phase, stop in zip(phases, [*(later.position for later in phases[1:]), end], strict=True):
        for share, (at, start) in zip(
            phase.sets, draws(phase.phase, phase.position, stop - phase.position), strict=True
        ):
            found.setdefault(share.index, []).extend(range(start, start + len(at)))
    return found


def test_a_run_that_is_resumed_as_it_was_stays_in_its_phase() -> None:
    first = run_phase(a=PERIOD - 1000, b=1000)
    assert go_on([first], first, 10, 80) == [first]
    moved = replace(first, sets=tuple(replace(share, shards="s3://other") for share in first.sets))
    assert go_on([first], moved, 10, 80) == [first]


def test_every_set_goes_on_without_a_gap_through_any_changes() -> None:
    half = PERIOD // 2
    phases = [run_phase(a=half, b=half)]
    phases = go_on(phases, run_phase(b=half, c=half), 10, 80)
    phases = go_on(phases, run_phase(global_packs=5, b=half, c=half), 12, 96)
    phases = go_on(phases, run_phase(c=1000, a=PERIOD - 1000), 14, 106)
    assert [(phase.step, phase.position) for phase in phases] == [(0, 0), (10, 80), (12, 96), (14, 106)]
    found = taken(phases, 1000)
    assert sum(map(len, found.values())) == 1000
    assert all(positions == list(range(len(positions))) for positions in found.values())
    assert {name: len(positions) > 0 for name, positions in found.items()} == {"a": True, "b": True, "c": True}


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"max_steps": 7}, 7),
        ({"max_epochs": 2.0}, 25),
        ({"max_epochs": 0.1}, 2),
        ({"max_epochs": 3.0}, 38),
        ({"max_tokens": 4000.0}, 10),
        ({"max_tokens": 4001.0}, 11),
        ({"max_tokens": 1e-5}, 1),
        ({"max_epochs": 1e-9}, 1),
    ],
)
def test_epochs_and_tokens_are_whole_steps_that_reach_them(length: dict[str, float], steps: int) -> None:
    assert run_steps(config(**length), [run_phase(a=PERIOD)]) == steps


def test_what_earlier_phases_trained_counts_by_their_own_measure() -> None:
    phases = go_on([run_phase(a=PERIOD)], replace(run_phase(5, b=PERIOD), pass_packs=50, pack_tokens=20.0), 10, 80)
    assert run_steps(config(max_epochs=1.0), phases) == 10 + 2
    assert run_steps(config(max_tokens=5000.0), phases) == 10 + 10
    assert run_steps(config(max_tokens=3000.0), phases) == 10


def test_a_larger_amount_of_the_same_mixture_makes_the_run_longer_and_changes_no_order() -> None:
    phases = [run_phase(a=PERIOD)]
    more = go_on(phases, replace(phases[0], pass_packs=200), 10, 80)
    assert [phase.phase for phase in more] == [phase.phase for phase in phases]
    assert run_steps(config(max_epochs=2.0), more) == 50


def test_the_start_of_any_step_is_known_from_the_phases() -> None:
    phases = [run_phase(a=PERIOD)]
    phases = go_on(phases, run_phase(global_packs=5, a=PERIOD), 10, 80)
    starts = [phase_of_step(phases, step)[1] for step in (1, 2, 10, 11, 12)]
    assert starts == [0, 8, 72, 80, 85]
    assert [phase_of_step(phases, step)[0].global_packs for step in (10, 11)] == [8, 5]


def test_phases_are_read_as_they_were_written(tmp_path: Path) -> None:
    phases = go_on([run_phase(a=PERIOD)], run_phase(a=1, b=PERIOD - 1), 3, 24)
    write_phases(tmp_path, phases)
    assert read_phases(tmp_path) == phases
    assert asdict(phases[1])["sets"][0]["cursor"] == 24


def test_a_folder_without_phases_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"phases\.json is missing"):
        read_phases(tmp_path)
    (tmp_path / PHASES_NAME).write_text("[{}]")
    with pytest.raises(TrainError, match=r"phases\.json is damaged"):
        read_phases(tmp_path)
