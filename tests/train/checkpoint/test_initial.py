"""What a run starts with, what its checkpoints hold, and where the rest comes from when it goes on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lmms.configs.by_part import Part
from lmms.configs.errors import ConfigError, LmmsError, TrainError
from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from lmms.train.checkpoint.export import export
from lmms.train.checkpoint.read import checkpoint_name, read_state
from lmms.train.checkpoint.state import Base
from lmms.train.model.names import is_lora
from lmms.train.optim.table import TRAINED_NAME
from lmms.train.run import train
from lmms.train.watch.metrics import StepLog
from tests.kit.model.models import part_of, tiny_model
from tests.kit.runs import assert_same_steps, read_metrics, read_tensors, run_config, silent, write_run

PRESETS = Path(__file__).resolve().parents[3] / "configs" / "presets"
FAMILY = "qwen3_vl"
LORA = {"train": {"default": "frozen", "llm": "lora"}, "lora.rank": 2, "lora.alpha": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of runs on a folder with weights, and the output of one with LoRA: four steps, each second saved."""
    folder = tmp_path_factory.mktemp("made")
    settings = write_run(folder, FAMILY) | {"model.init": "pretrained", "max_steps": 4, "save_steps": 2}
    tiny_model(FAMILY, seed=3).hf.save_pretrained(folder / "model")
    train(run_config({**settings, **LORA}), silent)
    return settings


def lines_of(config: TrainConfig) -> list[str]:
    """What a run says besides its steps."""
    said: list[StepLog | str] = []
    train(config, said.append)
    return [event for event in said if isinstance(event, str)]


def weights(output: str | Path, step: int) -> dict[str, torch.Tensor]:
    return read_tensors(Path(output) / checkpoint_name(step), "model.")


def test_a_checkpoint_of_lora_holds_lora_alone(made: dict[str, Any]) -> None:
    tensors = read_tensors(Path(made["output"]) / checkpoint_name(4))
    assert all(is_lora(name) for name in tensors)
    numbers = sum(tensor.numel() for tensor in tensors.values() if tensor.ndim)
    size = sum(path.stat().st_size for path in (Path(made["output"]) / checkpoint_name(4)).glob("*.distcp"))
    # Rank 2, three layers, inputs and outputs of q, k, v, o and of the MLP's three.
    own = 2 * 3 * ((32 + 64) + (32 + 32) + (32 + 32) + (64 + 32) + 3 * (32 + 48))
    assert numbers == 3 * own
    # The rest is the frame of each tensor in the file.
    assert size < 4 * numbers + 3000 * len(tensors)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_a_run_with_lora_goes_on_as_if_it_had_not_stopped(made: dict[str, Any], tmp_path: Path, init: str) -> None:
    settings = {**made, **LORA, "model.init": init}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(run_config(settings, output=str(whole)), silent)
    shutil.copytree(whole / checkpoint_name(2), again / checkpoint_name(2))
    train(run_config(settings, output=str(again)), silent)
    assert read_metrics(again) == read_metrics(whole)[2:]
    for name, tensor in weights(whole, 4).items():
        assert torch.equal(weights(again, 4)[name], tensor), name


def test_a_run_with_dropout_goes_on_with_the_draws_it_would_have_had(made: dict[str, Any], tmp_path: Path) -> None:
    settings = {**made, **LORA, "lora.dropout": 0.3}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(run_config(settings, output=str(whole)), silent)
    shutil.copytree(whole / checkpoint_name(2), again / checkpoint_name(2))
    train(run_config(settings, output=str(again)), silent)
    assert read_metrics(again) == read_metrics(whole)[2:]
    for name, tensor in weights(whole, 4).items():
        assert torch.equal(weights(again, 4)[name], tensor), name
    # In the first step LoRA adds nothing yet.
    without = read_metrics(made["output"])[1:4]
    assert all(line["loss"] != other["loss"] for line, other in zip(read_metrics(whole)[1:], without, strict=True))


def test_a_run_that_goes_on_refuses_another_lora(made: dict[str, Any]) -> None:
    changed = run_config({**made, **LORA}, lora__alpha=8, max_steps=6)
    with pytest.raises(TrainError, match=r"was trained with lora.alpha 4, this run has 8: its LoRA is another"):
        train(changed, silent)


def test_a_run_that_goes_on_finds_its_base_where_it_is_now_and_refuses_another(
    made: dict[str, Any], tmp_path: Path
) -> None:
    model, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(made["model.path"], model)
    shutil.copytree(made["output"], output)
    settings = {**made, **LORA, "model.path": str(model), "output": str(output), "max_steps": 5}
    state = json.loads((output / checkpoint_name(4) / "trainer.json").read_text())
    train(run_config(settings), silent)
    assert read_state(output / checkpoint_name(5)).base == Base(path=str(model), digest=state["base"]["digest"])
    tiny_model(FAMILY, seed=4).hf.save_pretrained(model)
    Path(made["model.path"]).rename(tmp_path / "moved")
    try:
        with pytest.raises(
            TrainError, match=r"neither that folder nor .* has them now; put them back, or start in another"
        ):
            train(run_config(settings, max_steps=6), silent)
        with pytest.raises(TrainError, match=r"neither that folder nor .*; put them back, or say where"):
            export(output / checkpoint_name(5), tmp_path / "exported")
    finally:
        (tmp_path / "moved").rename(made["model.path"])


@pytest.mark.parametrize("kind", ["checkpoint", "output", "adapter"])
def test_lora_starts_with_an_adapter(made: dict[str, Any], tmp_path: Path, kind: str) -> None:
    source = Path(made["output"])
    if kind == "adapter":
        source = export(source / checkpoint_name(4), tmp_path / "adapter")
    elif kind == "checkpoint":
        source = source / checkpoint_name(4)
    config = run_config(
        {**made, **LORA}, output=str(tmp_path / "out"), model__init_from=str(source), optim__lr=1e-20, max_steps=1
    )
    said = lines_of(config)
    assert any(line.startswith(f"model.init_from: {2 * 3 * 7} tensors of") for line in said)
    expected = weights(made["output"], 4)
    assert any(tensor.any() for name, tensor in expected.items() if ".lora_B." in name)
    for name, tensor in weights(config.output, 1).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-12, msg=name)
    # The averages and the position are a new run's.
    state = read_state(Path(config.output) / checkpoint_name(1))
    assert (state.step, state.position) == (1, 4)


def test_a_model_folder_becomes_the_base(made: dict[str, Any], tmp_path: Path) -> None:
    other = tiny_model(FAMILY, seed=9)
    other.hf.save_pretrained(tmp_path / "other")
    settings = {**made, **LORA, "output": str(tmp_path / "out"), "max_steps": 1}
    train(run_config(settings, model__init_from=str(tmp_path / "other")), silent)
    shutil.copytree(tmp_path / "other", tmp_path / "model")
    for path in Path(made["model.path"]).glob("token*"):
        shutil.copy(path, tmp_path / "model")
    shutil.copy(Path(made["model.path"]) / "preprocessor_config.json", tmp_path / "model")
    expected = {**settings, "model.path": str(tmp_path / "model"), "output": str(tmp_path / "expected")}
    train(run_config(expected), silent)
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path / "expected")
    assert read_state(tmp_path / "out" / checkpoint_name(1)).base.path == str(tmp_path / "other")
    # It goes on from that base, whatever the setting says then.
    train(run_config(settings, max_steps=2), silent)
    train(run_config(expected, max_steps=2), silent)
    assert read_metrics(tmp_path / "out") == read_metrics(tmp_path / "expected")


def test_a_run_that_goes_on_does_not_read_init_from_again(made: dict[str, Any]) -> None:
    config = run_config({**made, **LORA}, model__init_from="/no/such/folder")
    assert any(line.startswith("model.init_from is not read again: the run goes on from") for line in lines_of(config))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"default": "full"}}, "holds LoRA, but train gives this run none; .*lmms export CKPT DIR --merged"),
        ({"lora.rank": 3}, r"its LoRA has rank 2 and alpha 4, this run 3 and 4; .*, \.\.\. \(42 tensors in all\)$"),
        ({"lora.alpha": 8}, "its LoRA has rank 2 and alpha 4, this run 2 and 8"),
        ({"lora.targets": ["q_proj"]}, r"lora_A.default.weight is unexpected.*, \.\.\. \(36 tensors in all\)$"),
        ({"model.init": "random"}, "was trained on the weights of .*, this run starts with random numbers of seed 0"),
        ({"model.init_from": "/no/such"}, "neither a folder nor a hub id"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    made: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    base = {} if "train" in changes else LORA
    settings = {**made, **base, "output": str(tmp_path), "model.init_from": made["output"], **changes}
    with pytest.raises(LmmsError, match=message):
        train(run_config(settings), silent)


def test_a_folder_of_nothing_is_refused(made: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"is no checkpoint .*, no output of a run .*, no PEFT adapter .* and no model"
    ):
        train(run_config(made, output=str(tmp_path / "out"), model__init_from=str(tmp_path)), silent)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"use_dora": True}, "sets use_dora, which a run does not have"),
        ({"use_rslora": True}, "sets use_rslora"),
        ({"rank_pattern": {"q_proj": 4}}, "sets rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "sets alpha_pattern"),
        ({"lora_bias": True}, "sets lora_bias"),
        ({"target_parameters": ["a"]}, "sets target_parameters"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa', which changes the base too"),
        ({"init_lora_weights": "olora"}, "has init_lora_weights 'olora'"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(
    made: dict[str, Any], tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    adapter = export(Path(made["output"]) / checkpoint_name(4), tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **other}))
    with pytest.raises(TrainError, match=message):
        train(run_config({**made, **LORA}, output=str(tmp_path / "out"), model__init_from=str(adapter)), silent)


def test_what_an_adapter_leaves_open_is_said(made: dict[str, Any], tmp_path: Path) -> None:
    narrow = {**made, **LORA, "lora.targets": ["q_proj"], "max_steps": 1}
    train(run_config(narrow, output=str(tmp_path / "narrow")), silent)
    adapter = export(tmp_path / "narrow" / checkpoint_name(1), tmp_path / "adapter")
    wide = {**made, **LORA, "model.init_from": str(adapter), "max_steps": 1}
    said = lines_of(run_config(wide, output=str(tmp_path / "wide")))
    assert f"model.init_from: 6 tensors of {adapter}; LoRA of 18 of 21 layers starts anew" in said
    assert f"weights: those of {Path(made['model.path']).resolve()}" in said
    assert not any("are they the same?" in line for line in said)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "Qwen/other"}))
    said = lines_of(run_config(wide, output=str(tmp_path / "other")))
    expected = f"{adapter} was trained on Qwen/other, and this run starts with {made['model.path']}: are they the same?"
    assert f"model.init_from: {expected}" in said


def preset(name: str, settings: dict[str, Any], **changes: Any) -> TrainConfig:
    """A preset of two stages with the tiny model, its shards and its few steps in place of its own."""
    kept = {key: value for key, value in settings.items() if key not in ("optim.lr",)}
    values = {**kept, **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_config(TrainConfig, PRESETS / f"qwen3-vl-8b-{name}.yaml", (), {**values, "max_epochs": None})


def test_stage_two_starts_with_the_aligner_of_stage_one(made: dict[str, Any], tmp_path: Path) -> None:
    one = preset("stage-1-aligner", made, output=str(tmp_path / "one"))
    train(one, silent)
    aligner = weights(one.output, 4)
    assert {part_of(FAMILY, name.removeprefix("model.")) for name in aligner} == {"aligner"}
    start = tiny_model(FAMILY, seed=3).state_dict()
    assert not any(torch.equal(tensor, start[name.removeprefix("model.")]) for name, tensor in aligner.items())

    two = preset("stage-2-lora", made, output=str(tmp_path / "two"), model__init_from=one.output)
    train(two, silent)
    table = json.loads((tmp_path / "two" / TRAINED_NAME).read_text())
    assert {(row["part"], row["how"], tuple(row["lr"]), row["rank"]) for row in table} == {
        ("llm", "lora", (1e-4,), 64),
        ("llm", "frozen", (), None),
        ("vision", "frozen", (), None),
        ("aligner", "full", (1e-5,), None),
    }
    found = weights(two.output, 4)
    assert {name for name in found if not is_lora(name)} == aligner.keys()
    # Four steps of at most 1e-5 each.
    for name, tensor in aligner.items():
        assert float((found[name] - tensor).abs().max()) < 1e-4
        # A norm's weights are near 1, where fp32 may not tell so small a step.
        assert name.endswith("norm.weight") or not torch.equal(found[name], tensor)


def test_what_stage_one_brought_stays_where_stage_two_freezes_it(made: dict[str, Any], tmp_path: Path) -> None:
    """No later checkpoint and no base has it otherwise."""
    aligner: Part = "aligner"
    one = run_config(made, train={"default": "frozen", aligner: "full"}, output=str(tmp_path / "one"), max_steps=1)
    train(one, silent)
    settings = {**made, **LORA, "model.init_from": one.output, "model.precision": "bf16"}
    whole, again = tmp_path / "whole", tmp_path / "again"
    train(run_config(settings, output=str(whole)), silent)
    brought = weights(one.output, 1)
    for name, tensor in brought.items():
        assert torch.equal(weights(whole, 4)[name], tensor), name
    shutil.copytree(whole / checkpoint_name(2), again / checkpoint_name(2))
    train(run_config(settings, output=str(again)), silent)
    assert_same_steps(read_metrics(again), read_metrics(whole)[2:])
