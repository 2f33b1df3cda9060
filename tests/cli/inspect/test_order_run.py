"""lmms inspect order of a run file and of a run that goes on: the steps that lmms train then takes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lmms.cli.main import app
from lmms.configs.errors import ConfigError, TrainError
from lmms.configs.load import to_yaml
from lmms.configs.settings.data import ShareConfig
from lmms.configs.settings.train import TrainConfig
from lmms.train.run import train
from tests.kit.runs import read_metrics, run_config, silent, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of shards of one model."""
    folder = tmp_path_factory.mktemp("runs")
    for name, packs in (("a", 5), ("b", 12)):
        write_run(folder / name, "qwen3_vl", packs=packs)
    return folder


def mixed(folder: Path, output: Path, **changes: Any) -> TrainConfig:
    """Three steps on both sets, by weight, without the vision tower."""
    settings = write_settings(folder) | {"output": str(output), "train": {"default": "full", "vision": "frozen"}}
    config = run_config(settings, seed=5, data__group_packs=2, **changes)
    shares = tuple(ShareConfig(shards=str(folder / name / "shards"), weight=w) for name, w in (("a", 1.0), ("b", 2.0)))
    return replace(config, data=replace(config.data, shards=None, mixture=shares))


def write_settings(folder: Path) -> dict[str, Any]:
    model, shards = str(folder / "a" / "model"), str(folder / "a" / "shards")
    return {
        "model.path": model,
        "data.shards": shards,
        "model.init": "random",
        "device": "cpu",
        "max_steps": 3,
        "data.global_packs": 4,
        "data.workers": 0,
        "optim.eps": 1e-3,
    }


def written(config: TrainConfig, path: Path) -> Path:
    path.write_text(to_yaml(config), encoding="utf-8")
    return path


def inspect(*words: object) -> Result:
    return CliRunner().invoke(app, ["inspect", "order", *map(str, words)], env={"COLUMNS": "160"})


def digests(*words: object) -> dict[int, str]:
    result = inspect(*words, "--json")
    assert result.exit_code == 0, result.output
    return {line["step"]: line["digest"] for line in map(json.loads, result.output.splitlines())}


def logged(output: Path) -> dict[int, str]:
    return {line["step"]: line["digest"] for line in read_metrics(output)}


def test_a_run_file_and_a_run_that_goes_on_have_the_steps_that_are_trained(folder: Path, tmp_path: Path) -> None:
    config = mixed(folder, tmp_path / "run")
    coming = digests("--config", written(config, tmp_path / "first.yaml"), "--ranks", 2)
    train(config, silent)
    assert coming == logged(tmp_path / "run")

    longer = replace(
        config,
        max_steps=6,
        resume_changes=("mixture", "global_packs"),
        data=replace(config.data, global_packs=3, mixture=tuple(reversed(config.data.mixture))),
    )
    words = ("--config", written(longer, tmp_path / "longer.yaml"), tmp_path / "run")
    coming = digests(*words)
    assert "after step 3, 12 packs" in inspect(*words).output
    train(longer, silent)
    assert list(coming) == [4, 5, 6]
    assert coming == {step: digest for step, digest in logged(tmp_path / "run").items() if step > 3}

    result = inspect(tmp_path / "run")
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "nothing is left to show: the run is at step 6 of 6"


def test_the_settings_of_a_run_are_those_in_its_folder(folder: Path, tmp_path: Path) -> None:
    """Of the passes asked for no more than the run has; without a checkpoint, from its start."""
    config = mixed(folder, tmp_path / "run", max_steps=4)
    train(replace(config, max_steps=3), silent)
    written(config, tmp_path / "run" / "config.yaml")
    whole = digests("--config", tmp_path / "run" / "config.yaml", "--epochs", 9)
    assert digests(tmp_path / "run", "--epochs", 9) == {4: whole[4]}
    (tmp_path / "run" / "step-00000003").rename(tmp_path / "step-00000003")
    assert digests(tmp_path / "run") == whole
    moved = replace(config, resume=str(tmp_path / "step-00000003"))
    assert digests("--config", written(moved, tmp_path / "moved.yaml"), tmp_path / "run") == {4: whole[4]}


def test_what_lmms_train_would_not_go_on_from_is_refused(folder: Path, tmp_path: Path) -> None:
    config = mixed(folder, tmp_path / "run")
    train(config, silent)
    for change, error, message in (
        ({"seed": 6}, TrainError, "was trained with seed 5, this run has 6"),
        ({"resume": "never"}, ConfigError, "resume is never, but .* was named to go on from"),
    ):
        result = inspect("--config", written(replace(config, **change), tmp_path / "other.yaml"), tmp_path / "run")
        with pytest.raises(error, match=message):
            raise result.exception or AssertionError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "FILE", "SHARDS"], r"shards: expected one run, as its file, its output folder or both, or"),
        (["FILE", "FILE"], "expected one run"),
        (["FILE", "--world", "4"], "unknown key 'world'"),
        ([], "nothing is named"),
    ],
)
def test_a_run_that_is_named_twice_or_not_at_all_is_refused(
    words: list[str], message: str, folder: Path, tmp_path: Path
) -> None:
    file = written(mixed(folder, tmp_path / "run"), tmp_path / "run.yaml")
    places = {"FILE": str(file), "SHARDS": str(folder / "a" / "shards")}
    with pytest.raises(ConfigError, match=message):
        raise inspect(*(places.get(word, word) for word in words)).exception or AssertionError


def test_a_run_is_shown_with_other_settings_as_lmms_train_takes_them(folder: Path, tmp_path: Path) -> None:
    file = written(mixed(folder, tmp_path / "run"), tmp_path / "run.yaml")
    other = digests(file, "--seed", 6, "data.group_packs=1", "max_steps=2")
    assert list(other) == [1, 2]
    again = replace(mixed(folder, tmp_path / "run", max_steps=2), seed=6)
    again = replace(again, data=replace(again.data, group_packs=1))
    assert other == digests("--config", written(again, tmp_path / "again.yaml"))


def test_one_source_has_no_mix(folder: Path) -> None:
    output = inspect(folder / "b" / "shards", "data.global_packs=2").output
    (line,) = (line for line in output.splitlines() if "mix of sources" in line)
    assert line.split()[-2:] == ["one", "source"]
