"""Settings on a command line: the ways to write them, what words mean otherwise, and what a wrong one is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from lmms.cli.main import app
from lmms.cli.settings import read_settings
from lmms.configs.errors import ConfigError
from lmms.configs.load import load_config
from lmms.configs.other_names import OTHER_NAMES
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import TrainConfig

RUN = "model: {path: m}\ndata: {shards: d}\noutput: o\nmax_steps: 2\n"


def lmms(*words: object, **environment: str) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "120", **environment})


def shown(result: Result) -> dict[str, object]:
    """The settings that --print-config printed."""
    assert result.exit_code == 0, result.exception
    settings: dict[str, object] = yaml.safe_load(result.output)
    return settings


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(
    "words",
    [
        ["save_steps=7", "optim.lr=1e-4"],
        ["--save_steps", "7", "--optim.lr", "1e-4"],
        ["--save-steps=7", "--optim.lr=1e-4"],
        ["optim.lr=1e-4", "--save-steps", "7"],
    ],
)
def test_settings_of_a_run_may_be_written_as_pairs_or_as_options(run_file: Path, words: list[str]) -> None:
    settings = shown(lmms("train", run_file, *words, "--print-config"))
    assert (settings["save_steps"], settings["optim"]["lr"]["default"]) == (7, 1e-4)  # type: ignore[index]


def test_a_run_file_is_named_first_or_with_config_or_not_at_all(run_file: Path) -> None:
    first = shown(lmms("train", run_file, "--print-config"))
    assert first == shown(lmms("train", "--print-config", "--config", run_file))
    alone = ["model.path=m", "data.shards=d", "output=o", "max_steps=2"]
    assert first == shown(lmms("train", *alone, "--print-config"))


def test_two_run_files_are_refused(run_file: Path) -> None:
    result = lmms("train", run_file, "other.yaml")
    assert f"{run_file}, other.yaml: expected one run file" in str(result.exception)


def test_a_switch_needs_no_value(run_file: Path) -> None:
    settings = shown(lmms("train", run_file, "--deterministic", "--save-async", "false", "--print-config"))
    assert (settings["deterministic"], settings["save_async"]) == (True, False)


def test_settings_of_a_build_may_be_written_as_pairs_or_as_options() -> None:
    options = shown(
        lmms("prep", "build-shards", "a.jsonl", "--model", "m", "--seq-len", 64, "--out", "o", "--print-config")
    )
    assert options == shown(lmms("prep", "build-shards", "a.jsonl", "model=m", "seq_len=64", "out=o", "--print-config"))
    assert options["sources"] == ["a.jsonl"]


@pytest.mark.parametrize("text", ["2024", "1e5", "a: b", "runs #3", "true", "[x]", "*.x"])
def test_a_path_is_taken_as_it_stands_whatever_yaml_would_make_of_it(run_file: Path, text: str) -> None:
    assert shown(lmms("train", run_file, f"output={text}", "--print-config"))["output"] == text


def test_a_path_may_be_quoted_and_null_takes_it_back(run_file: Path) -> None:
    config = load_config(TrainConfig, run_file, ["output='a b'", "data.cache=c", "data.cache=null"])
    assert (config.output, config.data.cache) == ("a b", None)


def test_a_file_with_an_equals_sign_in_its_name_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lang=en.jsonl").touch()
    words = ["lang=en.jsonl", "./lang=de.jsonl", "data/lang=*", "seed=3"]
    assert read_settings(words, PrepConfig, ()) == (words[:3], ["seed=3"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nprc", "2"], "there is no option --nprc; did you mean --nproc?"),
        (["--dry-rum"], "there is no option --dry-rum; did you mean --dry-run?"),
        (["-x"], "there is no option -x; a setting is KEY=VALUE or --key VALUE"),
        (["optim.lr"], "override 'optim.lr' has no '='; expected KEY=VALUE, such as optim.lr=1e-5"),
        (["--optim.learning_rate", "1e-5"], "unknown key 'optim.learning_rate'; it is 'optim.lr' here"),
        (["--num-train-epochs", "3"], "unknown key 'num_train_epochs'; it is 'max_epochs' here"),
        (["output_dir=x"], "unknown key 'output_dir'; it is 'output' here"),
        (["gradient_accumulation_steps=4"], "unknown key 'gradient_accumulation_steps'; data.global_packs is the"),
        (["save_stepz=4"], "unknown key 'save_stepz'; did you mean 'save_steps'?"),
    ],
)
def test_a_word_that_is_wrong_is_told_what_to_write(run_file: Path, words: list[str], message: str) -> None:
    result = lmms("train", run_file, *words)
    assert result.exit_code == 1
    assert message in str(result.exception)


def test_what_other_frameworks_call_a_setting_is_answered_with_a_key_that_there_is() -> None:
    for kind, names in OTHER_NAMES.items():
        for name, ours in names.items():
            assert ours in refusal(kind, f"{name}=1")
            if " " not in ours:
                assert "unknown key" not in refusal(kind, f"{ours}=null"), ours


def refusal(kind: type, override: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(kind, None, [override])
    return str(caught.value)


def test_help_has_a_short_form_on_every_level() -> None:
    for words in ([], ["train"], ["prep"], ["prep", "build-shards"], ["inspect", "run"]):
        assert lmms(*words, "-h").output == lmms(*words, "--help").output != ""


def test_completion_can_be_installed(tmp_path: Path) -> None:
    command = f"{sys.executable} -m lmms.cli --install-completion; true"
    done = subprocess.run(["bash", "-c", command], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True)
    assert b"bash completion installed" in done.stdout, done.stderr
    assert "_LMMS_COMPLETE" in (tmp_path / ".bash_completions" / "lmms.sh").read_text()
