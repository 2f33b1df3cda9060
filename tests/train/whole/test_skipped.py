"""A step whose loss or gradient is not finite: skipped, named, counted, and too many of them stop the run."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

import lmms.train.loop
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.read import checkpoint_name, read_state, tensors_of
from lmms.train.run import train
from lmms.train.step import take_step
from lmms.train.watch.metrics import METRICS_NAME, StepLog
from lmms.train.watch.records import records_of
from tests.kit.broken_steps import Step, poisoned, train_with
from tests.kit.ranks import on_ranks
from tests.kit.runs import read_metrics, read_tensors, run_config, silent, write_run


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return write_run(tmp_path, "qwen3_vl")


def undone(steps: Collection[int]) -> Step:
    """take_step whose update is taken back in these steps."""

    def step(learner: Any, plan: Any, *rest: Any) -> Any:
        states = tensors_of(learner.model, learner.optimizer)
        before = {name: value.detach().clone() for name, value in states.items()}
        result = take_step(learner, plan, *rest)
        if plan.step in steps:
            for name, value in states.items():
                value.detach().copy_(before[name])
        return result

    return step


def saved_at(step: int, take: Step) -> Step:
    """take_step while SIGUSR1 asks for a checkpoint of this step."""

    def asked(learner: Any, plan: Any, *rest: Any) -> Any:
        if plan.step == step:
            rest[-1].asked.save = 1
        return take(learner, plan, *rest)

    return asked


def skips(output: str) -> list[int]:
    return [line["skipped"] for line in read_metrics(output)]


def test_a_skipped_step_leaves_the_run_as_if_it_had_never_been_applied(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, other = (run_config(settings, output=str(tmp_path / name), max_steps=5) for name in ("bad", "other"))
    said = train_with(monkeypatch, poisoned({2}), bad)
    train_with(monkeypatch, undone({2}), other)
    assert skips(bad.output) == [0, 1, 0, 0, 0]
    found, expected = read_metrics(bad.output), read_metrics(other.output)
    assert [line["digest"] for line in found] == [line["digest"] for line in expected]
    assert [line["lr"] for line in found] == [line["lr"] for line in expected]
    assert found[:1] + found[2:] == expected[:1] + expected[2:]
    last = checkpoint_name(5)
    tensors, others = (read_tensors(Path(config.output) / last) for config in (bad, other))
    assert tensors.keys() == others.keys()
    assert all(torch.equal(tensors[name], others[name]) for name in others)
    alarms = [sentence for sentence in said if sentence.startswith("ALARM")]
    assert len(alarms) == 1
    packs = ", ".join(map(str, sorted({record.pack for record in records_of(Path(bad.output), 2).records})))
    assert f"step 2: loss sum is nan, gradient norm nan, expected finite numbers; packs {packs};" in alarms[0]
    assert f"skipped, 1 in a row of at most 3; `lmms inspect step {bad.output} 2` names its records" in alarms[0]


def test_more_in_a_row_than_allowed_stop_the_run_also_over_a_resumption(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 1, 2 and 4, 5 are two in a row; 6 would be the third, after a resumption between 5 and 6."""
    config = run_config(settings, max_steps=8, save_steps=9, max_skipped=2)
    with pytest.raises(TrainError, match=r"step 6: loss sum is nan.*packs \d.*; max_skipped is 2; `lmms inspect step"):
        train_with(monkeypatch, saved_at(5, poisoned({1, 2, 4, 5, 6})), config)
    assert skips(config.output) == [1, 2, 0, 1, 2, 3]
    # As the message says.
    assert records_of(Path(config.output), 6).records
    assert read_state(Path(config.output) / checkpoint_name(5)).skipped == 2
    with pytest.raises(TrainError, match=r"step 6: .*; max_skipped is 2"):
        train_with(monkeypatch, poisoned({6}), config)
    train_with(monkeypatch, poisoned({7, 8}), config)
    assert skips(config.output) == [1, 2, 0, 1, 2, 0, 1, 2]


def test_without_any_allowed_the_first_one_stops(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(settings, max_skipped=0, log_steps=10)
    events: list[StepLog | str] = []
    monkeypatch.setattr(lmms.train.loop, "take_step", poisoned({2}))
    with pytest.raises(TrainError, match=r"step 2: .*; max_skipped is 0"):
        train(config, events.append)
    assert skips(config.output) == [0, 1]
    # It is shown too, whatever log_steps is.
    assert [event.step for event in events if isinstance(event, StepLog)] == [2]


def test_a_checkpoint_that_is_due_waits_for_a_step_that_is_not_skipped(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(settings, max_steps=9, save_steps=3)
    train_with(monkeypatch, poisoned({3, 4, 8}), config)
    found = sorted(path.name for path in Path(config.output).glob("step-*"))
    assert found == [checkpoint_name(step) for step in (5, 6, 9)]


def test_fewer_than_none_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="max_skipped is -1, expected at least 0"):
        run_config(settings, max_skipped=-1)


def _rank(rank: int, ranks: int, config: TrainConfig) -> None:
    def step(learner: Any, plan: Any, *rest: Any) -> Any:
        """On rank 1 alone, the loss of step 2 is infinite."""
        hook = learner.model.register_forward_hook(lambda module, args, out: (out[0] * float("inf"), out[1]))
        if (rank, plan.step) != (1, 2):
            hook.remove()
        result = take_step(learner, plan, *rest)
        hook.remove()
        return result

    lmms.train.loop.take_step = step  # type: ignore[assignment]
    events: list[StepLog | str] = []
    train(config, events.append if rank == 0 else silent)
    if rank == 0:
        said = [event for event in events if isinstance(event, str) and event.startswith("ALARM")]
        (Path(config.output) / "said.json").write_text(json.dumps(said))


def test_a_fault_on_one_rank_is_skipped_by_all_and_its_packs_alone_are_named(settings: dict[str, Any]) -> None:
    config = run_config(settings)
    on_ranks(_rank, 2, config)
    lines = [json.loads(line) for line in (Path(config.output) / METRICS_NAME).read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [0, 1, 0]
    (said,) = json.loads((Path(config.output) / "said.json").read_text())
    packs = {record.pack for record in records_of(Path(config.output), 2).records}
    named = {int(number) for number in said.split("packs ")[1].split(";")[0].split(", ")}
    assert len(named) == 2
    assert named < packs
    steps = {float(v) for k, v in read_tensors(Path(config.output) / checkpoint_name(3)).items() if k.endswith(".step")}
    assert max(steps) == 2
