"""A whole run: killed and resumed bit for bit, frozen parts untouched, and what does not fit refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import lmms.train.loop
from lmms.configs.by_part import Part
from lmms.configs.errors import ConfigError, ModelError, TrainError
from lmms.configs.load import load_config, to_yaml
from lmms.configs.settings.train import TrainConfig
from lmms.configs.stores.store import setting_text
from lmms.train.checkpoint.export import export
from lmms.train.checkpoint.read import checkpoint_name, list_checkpoints, read_state
from lmms.train.checkpoint.resume import output_locked
from lmms.train.data.phases import read_phases
from lmms.train.optim.table import TRAINED_NAME, Row, table_lines
from lmms.train.run import train
from lmms.train.step import take_step
from lmms.train.watch import metrics
from lmms.train.watch.metrics import StepLog
from tests.kit.model.models import frozen, part_of, tiny_config, tiny_model
from tests.kit.ranks import free_port
from tests.kit.runs import (
    assert_same_steps,
    read_metrics,
    read_tensors,
    run_config,
    silent,
    train_until_killed,
    without_waits,
    write_model_folder,
    write_run,
)

RANK = """
import os, sys
from pathlib import Path
from lmms.configs.errors import LmmsError
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.train.run import train
try:
    train(load_config(TrainConfig, Path(sys.argv[1])), print)
except LmmsError as error:
    print(type(error).__name__, error)
    sys.stdout.flush()
    os._exit(1)
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return write_run(tmp_path, "qwen3_vl")


def printed_by_two_ranks(config: TrainConfig, folder: Path) -> list[str]:
    """What each rank of two prints, to the end."""
    (folder / "run.yaml").write_text(to_yaml(config))
    group = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, folder / "run.yaml"],
            stdout=subprocess.PIPE,
            text=True,
            env=group | {"RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    return [rank.communicate(timeout=600)[0] for rank in ranks]


def test_eight_steps_are_four_a_kill_and_four_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    whole = run_config(settings, output=str(tmp_path / "whole"), max_steps=8, save_steps=4)
    train(whole, silent)
    killed = run_config(settings, output=str(tmp_path / "killed"), max_steps=8, save_steps=4, save_async=False)
    train_until_killed(killed, tmp_path / "run.yaml", 6)
    output = Path(killed.output)
    assert [path.name for path in list_checkpoints(output)[0]] == [checkpoint_name(4)]
    events: list[StepLog | str] = []
    train(killed, events.append)
    assert f"resumed from {output / checkpoint_name(4)} at step 4" in events
    assert [event.step for event in events if isinstance(event, StepLog)] == [5, 6, 7, 8]
    assert read_metrics(output) == read_metrics(whole.output)
    found = read_tensors(output / checkpoint_name(8))
    expected = read_tensors(Path(whole.output) / checkpoint_name(8))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert read_state(output / checkpoint_name(8)).position == 8 * 4


def test_each_group_is_moved_at_its_own_peak_times_the_schedule(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[float, float]] = []

    def step(learner: Any, *rest: Any) -> Any:
        result = take_step(learner, *rest)
        seen.append({group["peak"]: group["lr"] for group in learner.optimizer.param_groups})
        return result

    monkeypatch.setattr(lmms.train.loop, "take_step", step)
    schedule = {"schedule": "linear", "warmup_steps": 2, "min_lr_ratio": 0.1, "lr": {"default": 1e-2, "vision": 1e-3}}
    config = run_config(settings, max_steps=6, **{f"optim__{name}": value for name, value in schedule.items()})
    train(config, silent)
    shares = [0.5, 1.0, 1.0, 0.775, 0.55, 0.325]
    assert seen == [{peak: pytest.approx(peak * share) for peak in (1e-2, 1e-3)} for share in shares]
    assert [line["lr"] for line in read_metrics(config.output)] == pytest.approx([1e-2 * share for share in shares])


def test_gradients_are_clipped_at_the_norm_that_is_set(settings: dict[str, Any], tmp_path: Path) -> None:
    averages, norms = [], []
    for limit in (1e9, 0.1):
        config = run_config(settings, max_steps=1, output=str(tmp_path / f"{limit:g}"), optim__max_grad_norm=limit)
        train(config, silent)
        stored = read_tensors(Path(config.output) / checkpoint_name(1), "optimizer.")
        averages.append({name: value for name, value in stored.items() if name.endswith("exp_avg")})
        norms.append(read_metrics(config.output)[0]["grad_norm"])
    assert norms[0] == norms[1] > 0.2
    for name, free in averages[0].items():
        torch.testing.assert_close(averages[1][name], free * 0.1 / norms[0], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("part", ["llm", "vision", "aligner"])
def test_a_frozen_part_does_not_change_by_a_bit_and_the_others_do(
    settings: dict[str, Any], tmp_path: Path, part: Part
) -> None:
    """It is in no checkpoint, and an export has it."""
    config = run_config(settings, train={part: "frozen"})
    train(config, silent)
    start = tiny_model("qwen3_vl", seed=config.seed)
    checkpoint = Path(config.output) / checkpoint_name(3)
    assert part not in {part_of("qwen3_vl", name) for name in read_tensors(checkpoint, "model.")}
    end = load_file(export(checkpoint, tmp_path / "exported") / "model.safetensors")
    changed = {"llm": 0, "vision": 0, "aligner": 0}
    for name, parameter in start.hf.named_parameters():
        changed[part_of("qwen3_vl", name)] += not torch.equal(end[name], parameter)
    assert changed.pop(part) == 0
    assert all(changed.values())
    logged = read_metrics(config.output)
    assert all(line[f"grad_norm_{part}"] is None for line in logged)
    assert all(line[f"grad_norm_{other}"] > 0 for line in logged[:1] for other in changed)


def test_freezing_vision_in_a_text_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train names 'vision'"):
        train(run_config(write_run(tmp_path, "qwen2"), train={"vision": "frozen"}), silent)


@pytest.mark.parametrize("family", ["qwen2", "qwen2_vl"])
def test_the_loss_falls_from_where_random_weights_put_it(family: str, tmp_path: Path) -> None:
    config = run_config(write_run(tmp_path, family), max_steps=30, log_steps=10, optim__schedule="constant")
    events: list[StepLog | str] = []
    train(config, events.append)
    losses = [line["loss"] for line in read_metrics(config.output)]
    assert len(losses) == 30
    assert [event.step for event in events if isinstance(event, StepLog)] == [10, 20, 30]
    assert losses[-1] < losses[0] - 0.5


def test_pretrained_weights_are_where_a_run_starts(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3", tied=True)
    torch.manual_seed(5)
    pretrained = AutoModelForCausalLM.from_config(tiny_config("qwen3", tied=True))
    pretrained.save_pretrained(tmp_path / "model")
    config = run_config(settings, model__init="pretrained", optim__lr=1e-20, max_steps=1)
    train(config, silent)
    tensors = read_tensors(Path(config.output) / checkpoint_name(1), "model.")
    for name, parameter in pretrained.named_parameters():
        assert torch.equal(tensors[f"model.hf.{name}"], parameter), name


@pytest.mark.parametrize("how", ["full", "lora"])
def test_a_trained_part_without_gradient_is_an_alarm_that_names_it(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(metrics, "ZERO_STEPS", 2)
    model = tiny_model("qwen3_vl")
    for merger in (model.hf.model.visual.merger, *model.hf.model.visual.deepstack_merger_list):
        torch.nn.init.zeros_(merger.linear_fc2.weight)
    model.hf.save_pretrained(tmp_path / "model")
    events: list[StepLog | str] = []
    config = run_config(
        settings, model__init="pretrained", max_steps=4, log_steps=100, train={"aligner": "frozen", "vision": how}
    )
    train(config, events.append)
    alarms = [event for event in events if isinstance(event, str) and event.startswith("ALARM")]
    # All four steps hold images.
    assert alarms == [f"ALARM: vision is trained, but its gradient was 0 for {n} steps that reach it" for n in (2, 4)]
    logged = [event for event in events if isinstance(event, StepLog)]
    assert [(log.step, log.alarms) for log in logged] == [(2, ("vision",)), (4, ("vision",))]
    assert read_metrics(config.output)[1]["alarms"] == ["vision"]
    assert read_state(Path(config.output) / checkpoint_name(4)).zero_steps == {"llm": 0, "vision": 4}


def test_the_output_holds_the_resolved_config(settings: dict[str, Any]) -> None:
    config = run_config(settings, max_steps=1)
    train(config, silent)
    assert load_config(TrainConfig, Path(config.output) / "config.yaml") == config


def test_a_finished_run_has_nothing_left_to_do(settings: dict[str, Any]) -> None:
    config = run_config(settings, max_steps=1)
    train(config, silent)
    events: list[StepLog | str] = []
    train(config, events.append)
    saved = Path(config.output) / checkpoint_name(1)
    assert without_waits(events)[:-1] == [
        f"resumed from {Path(config.output) / checkpoint_name(1)} at step 1",
        "kernels: attention sdpa; norms, MLPs and rotations torch",
        *table_lines([Row(**row) for row in json.loads((Path(config.output) / TRAINED_NAME).read_text())]),
        "nothing left to do: the run is at step 1 of 1",
    ]
    assert str(events[-1]).startswith(f"finished: step 1 is saved in {saved}; next: `lmms export ")


def test_a_broken_newest_checkpoint_is_set_aside_and_the_one_before_is_used(settings: dict[str, Any]) -> None:
    config = run_config(settings, max_steps=2, save_steps=1)
    train(config, silent)
    half = Path(config.output) / checkpoint_name(2)
    (half / "complete.json").unlink()
    events: list[StepLog | str] = []
    train(config, events.append)
    told = without_waits(events)
    assert str(told[0]).startswith(f"{half} is broken (it has no complete.json): it was set aside")
    assert told[1] == f"resumed from {Path(config.output) / checkpoint_name(1)} at step 1"
    assert told[-2] == f"saved {half}"
    assert half.with_name(half.name + ".broken").is_dir()


def test_shards_of_another_tokenizer_are_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    write_model_folder(tmp_path / "model", "qwen3_vl", word="b")
    with pytest.raises(
        ModelError, match=r"does not fit the shards in .*: tokenizer is \w{12}, the shards have \w{12};"
    ):
        train(run_config(settings), silent)


def test_every_difference_of_model_and_shards_is_listed(settings: dict[str, Any], tmp_path: Path) -> None:
    write_model_folder(tmp_path / "other", "qwen3")
    (tmp_path / "other" / "tokenizer_config.json").write_text('{"chat_template": "another"}')
    with pytest.raises(ModelError) as raised:
        train(run_config(settings, model__path=str(tmp_path / "other")), silent)
    for difference in (
        "family is qwen3, the shards have qwen3_vl",
        "image_token_id",
        "tokenizer",
        "template",
        "vision",
    ):
        assert difference in str(raised.value)


def test_image_areas_that_prep_was_told_are_no_difference(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(file.read_text().replace('"max_pixels": 4096', '"max_pixels": 99999'))
    assert "99999" in file.read_text()
    train(run_config(settings, max_steps=1), silent)


def test_a_checkpoint_of_other_shards_or_another_seed_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    train(run_config(settings, max_steps=1), silent)
    with pytest.raises(TrainError, match="was trained with seed 0, this run has 1"):
        train(run_config(settings, seed=1), silent)
    shutil.rmtree(tmp_path / "shards")
    shutil.rmtree(tmp_path / "model")
    write_run(tmp_path, "qwen3_vl", packs=10)
    with pytest.raises(TrainError, match="was trained with shards"):
        train(run_config(settings), silent)


def test_a_run_goes_on_with_steps_of_another_size_only_when_told_so(settings: dict[str, Any]) -> None:
    train(run_config(settings, max_steps=1), silent)
    smaller = run_config(settings, max_steps=3, data__global_packs=2)
    with pytest.raises(TrainError, match=r"data\.global_packs 4, this run has 2: .*resume_changes"):
        train(smaller, silent)
    train(replace(smaller, resume_changes=("global_packs",)), silent)
    assert [line["position"] for line in read_metrics(settings["output"])] == [4, 6, 8]
    assert [(phase.step, phase.position, phase.global_packs) for phase in read_phases(Path(smaller.output))] == [
        (0, 0, 4),
        (1, 4, 2),
    ]
    # From here on the smaller step is the run's own.
    train(replace(smaller, max_steps=4), silent)
    assert read_metrics(settings["output"])[-1]["position"] == 10


def test_loader_processes_change_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    configs = [run_config(settings, output=str(tmp_path / str(n)), data__workers=n, max_steps=2) for n in (0, 1)]
    for config in configs:
        train(config, silent)
    assert read_metrics(configs[0].output) == read_metrics(configs[1].output)


@pytest.mark.parametrize("micro_packs", [3, 7])
def test_passes_that_do_not_divide_a_step_change_nothing(
    settings: dict[str, Any], tmp_path: Path, micro_packs: int
) -> None:
    configs = [run_config(settings, output=str(tmp_path / str(n)), data__micro_packs=n) for n in (4, micro_packs)]
    for config in configs:
        train(config, silent)
    assert_same_steps(read_metrics(configs[1].output), read_metrics(configs[0].output))


@pytest.mark.parametrize(("length", "steps"), [({"max_epochs": 1.5}, 5), ({"max_tokens": 300.0}, 3)])
def test_epochs_or_tokens_are_the_length_of_a_run(settings: dict[str, Any], length: dict[str, Any], steps: int) -> None:
    config = run_config(settings, max_steps=None, **length)
    train(config, silent)
    found = read_metrics(config.output)
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    assert {line["steps"] for line in found} == {steps}
    if wanted := length.get("max_epochs"):
        assert found[-2]["epoch"] < wanted <= found[-1]["epoch"]


def test_settings_that_changed_are_reported(settings: dict[str, Any]) -> None:
    train(run_config(settings, max_steps=1), silent)
    events: list[StepLog | str] = []
    train(run_config(settings, max_steps=2, optim__lr=2e-2), events.append)
    told = without_waits(events)
    assert told[1:3] == [
        "changed since the checkpoint: max_steps was 1, is 2",
        "changed since the checkpoint: optim.lr.default was 0.01, is 0.02",
    ]
    assert str(told[3]).startswith("kernels:")
    # The table of what is trained: its head and three parts.
    assert isinstance(told[8], StepLog)


@pytest.mark.parametrize(("before", "after"), [([], ["vision"]), (["vision"], []), (["vision"], ["aligner"])])
def test_another_freeze_is_refused_on_resume(settings: dict[str, Any], before: list[Part], after: list[Part]) -> None:
    train(run_config(settings, max_steps=1, train=dict.fromkeys(before, "frozen")), silent)
    refused = f"trained with train {setting_text(frozen(*before))}, this run has {setting_text(frozen(*after))}"
    with pytest.raises(TrainError, match=re.escape(refused)):
        train(run_config(settings, max_steps=2, train=dict.fromkeys(after, "frozen")), silent)


def test_an_output_that_another_run_writes_is_refused_and_free_afterwards(settings: dict[str, Any]) -> None:
    config = run_config(settings, max_steps=1)
    with output_locked(Path(config.output)), pytest.raises(TrainError, match="another run is writing"):
        train(config, silent)
    assert list(Path(config.output).iterdir()) == []
    train(config, silent)


@pytest.mark.parametrize("fault", ["locked", "later"])
def test_what_rank_0_refuses_is_refused_on_every_rank(settings: dict[str, Any], tmp_path: Path, fault: str) -> None:
    config = run_config(settings, max_steps=1, resume="never", data__global_packs=4)
    if fault == "later":
        train(config, silent)
    with output_locked(Path(config.output)) if fault == "locked" else nullcontext():
        messages = printed_by_two_ranks(config, tmp_path)
    expected = "another run is writing" if fault == "locked" else "holds later checkpoints"
    last = [message.rstrip().splitlines()[-1] for message in messages]
    assert all(line.startswith("TrainError") and expected in line for line in last), messages


def test_steps_larger_than_an_epoch_are_said_once(settings: dict[str, Any]) -> None:
    events: list[StepLog | str] = []
    train(run_config(settings, max_steps=2, data__global_packs=12), events.append)
    assert [event for event in events if "epoch has" in str(event)] == [
        "an epoch has 11 packs, fewer than data.global_packs (12): a step takes some packs more than once"
    ]
