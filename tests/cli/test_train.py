"""lmms train and lmms export as commands: settings, plain lines, launched ranks and their errors."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from lmms.cli.export import export
from lmms.cli.train import _curve, _line, _panel
from lmms.configs.load import to_yaml
from lmms.train.checkpoint import checkpoint_name
from lmms.train.metrics import SetLog, StepLog
from tests.train.runs import read_metrics, run_config, write_run


def lmms(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmms.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def step_log(step: int, loss: float) -> StepLog:
    return StepLog(
        step=step,
        steps=10,
        loss=loss,
        lr=1e-5,
        grad_norm=2.0,
        grad_norm_llm=1.5,
        grad_norm_vision=None,
        grad_norm_aligner=0.0,
        tokens=12_345,
        target_tokens=6_000,
        tokens_per_s=98_765.0,
        data_wait=0.02,
        memory=3_000_000_000,
        epoch=1.25,
        position=10 * step,
        digest="00000000deadbeef",
        masked=1,
        time=100.0 + 60 * step,
    )


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on a tiny Qwen3-VL."""
    folder = tmp_path_factory.mktemp("run")
    file = folder / "run.yaml"
    file.write_text(to_yaml(run_config(write_run(folder, "qwen3_vl"), max_steps=4)))
    return file


def test_two_launched_ranks_train_and_only_one_speaks_and_the_result_exports(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = run_file.parent / "two"
    done = lmms("train", "--config", run_file, "--nproc", "2", f"output={output}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("step")] == [f"step {i}/4" for i in (1, 2, 3, 4)]
    assert lines[0] == "started at step 0"
    assert lines[-1] == f"saved {output / checkpoint_name(4)}"
    assert [line["step"] for line in read_metrics(output)] == [1, 2, 3, 4]
    export(output / checkpoint_name(4), run_file.parent / "exported")
    assert capsys.readouterr() == (f"exported {run_file.parent / 'exported'}\n", "")
    assert json.loads((run_file.parent / "exported" / "config.json").read_text())["model_type"] == "qwen3_vl"


def test_the_error_of_a_launched_rank_is_one_line_and_status_1(run_file: Path) -> None:
    done = lmms("train", "--config", run_file, "--nproc", "2", "data.shards=/nowhere")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(("error: rank 0: /nowhere", "error: rank 1: /nowhere"))


def test_print_config_shows_what_overrides_and_options_made_of_the_file_and_trains_nothing(run_file: Path) -> None:
    done = lmms(
        "train", "--config", run_file, "--print-config", "--resume", "never", "optim.lr=1e-6", "output=/nowhere"
    )
    assert done.returncode == 0, done.stderr
    assert "  lr:\n    default: 1.0e-06\n" in done.stdout
    assert "resume: never\n" in done.stdout
    assert "output: /nowhere\n" in done.stdout


def test_a_plain_line_says_all_that_counts() -> None:
    line = _line([step_log(1, 2.5), step_log(2, 2.25)])
    assert line.startswith("step 2/10  loss 2.2500  lr 1e-05  gradient 2 (llm 1.5, aligner 0)  ")
    for text in (
        "12.3 k",
        "49% targets",
        "98.8 k tokens/s",
        "2% waiting",
        "3.00 GB",
        "epoch 1.250 (20 packs)",
        "masked 1 ",
    ):
        assert text in line
    assert line.endswith("8:00 left")


def test_sets_and_evaluations_are_in_the_line_where_there_are_any() -> None:
    sets = {"a": SetLog(loss=1.5, share=0.5, epoch=0.1), "s3://b": SetLog(loss=None, share=0.0, epoch=2.0)}
    line = _line([replace(step_log(1, 2.5), sets=sets, eval_loss=1.25)])
    assert "sets a 1.5000, s3://b -  evaluation 1.2500" in line


def test_the_panel_fits_a_narrow_terminal_and_shows_the_same_facts() -> None:
    out = Console(width=80, record=True, force_terminal=False)
    with out.capture() as shown:
        out.print(_panel([step_log(i, 3.0 / i) for i in range(1, 6)]))
    text = shown.get()
    assert "step 5 of 10" in text
    assert "50%" in text
    assert "5:00 left" in text
    assert "█" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_curve_is_as_high_as_the_loss() -> None:
    assert _curve([3.0, 2.0, 1.0]) == "█▅▁" or _curve([3.0, 2.0, 1.0]) == "█▄▁"
    assert _curve([1.0]) == "▁"
    long = _curve([float(1000 - i) for i in range(1000)])
    assert (len(long), long[0], long[-1]) == (32, "█", "▁")
