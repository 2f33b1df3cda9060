"""lmms train and lmms export as commands: settings, plain lines, launched ranks and their errors."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from lmms.cli.export import export
from lmms.cli.train import _first_failure, _with_siblings
from lmms.configs.load import to_yaml
from lmms.train.checkpoint.read import checkpoint_name
from lmms.train.run import train
from tests.kit.model.models import tiny_model
from tests.kit.runs import read_metrics, run_config, silent, write_run


def lmms(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lmms.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


WHOLE = "next: from_pretrained loads it (transformers 4.57, 5)"
ADAPTER = "next: PEFT loads the adapter onto its base"


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
    assert [line.split("  ")[0] for line in lines if "/4  " in line] == [f"step {i}/4" for i in (1, 2, 3, 4)]
    assert [line for line in lines if "random" in line or "started" in line] == [
        "weights: random numbers of seed 0",
        "started at step 0",
    ]
    waits = [line for line in lines if line.endswith(" ...")]
    assert waits[-1] == "step 1 of 4, its first packs are read ..."
    assert len(waits) == len(set(waits)) >= 4
    assert lines[-2] == f"saved {output / checkpoint_name(4)}"
    assert lines[-1].startswith(f"finished: step 4 is saved in {output / checkpoint_name(4)}; next: `lmms export ")
    log = (output / "train.log").read_text().splitlines()
    assert [line[20:] for line in log] == lines
    assert [line["step"] for line in read_metrics(output)] == [1, 2, 3, 4]
    export(output / checkpoint_name(4), run_file.parent / "exported")
    assert capsys.readouterr() == (f"exported {run_file.parent / 'exported'}; {WHOLE}\n", "")
    assert json.loads((run_file.parent / "exported" / "config.json").read_text())["model_type"] == "qwen3_vl"


def test_a_run_with_lora_exports_an_adapter_or_merged_and_says_nothing_else(tmp_path: Path) -> None:
    settings = write_run(tmp_path, "qwen3", tied=True)
    tiny_model("qwen3", tied=True).hf.save_pretrained(tmp_path / "model")
    lora = {"train": {"llm": "lora"}, "lora.modules_to_save": ["lm_head"], "model.init": "pretrained", "max_steps": 1}
    train(run_config(settings | lora), silent)
    for out, options, next_step in (("adapter", (), ADAPTER), ("merged", ("--merged",), WHOLE)):
        done = lmms("export", tmp_path / "out" / checkpoint_name(1), tmp_path / out, *options)
        assert (done.stdout, done.stderr) == (f"exported {tmp_path / out}; {next_step}\n", "")
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert (tmp_path / "merged" / "config.json").is_file()


def test_the_error_of_a_launched_rank_is_one_line_and_status_1(run_file: Path) -> None:
    done = lmms("train", "--config", run_file, "--nproc", "2", "optim.lr={default: 1e-3, nosuch: 1e-3}")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(("error: rank 0: optim.lr", "error: rank 1: optim.lr"))


def test_print_config_shows_what_overrides_and_options_made_of_the_file_and_trains_nothing(run_file: Path) -> None:
    done = lmms(
        "train", "--config", run_file, "--print-config", "--resume", "never", "optim.lr=1e-6", "output=/nowhere"
    )
    assert done.returncode == 0, done.stderr
    assert "  lr:\n    default: 1.0e-06\n" in done.stdout
    assert "resume: never\n" in done.stdout
    assert "output: /nowhere\n" in done.stdout


def test_of_failures_in_the_same_second_the_one_that_explains_is_the_first() -> None:
    """A rank that ends breaks the connections of the others."""
    lost = SimpleNamespace(message="RuntimeError: Connection closed by peer", timestamp=7)
    ours = SimpleNamespace(message={"message": "TrainError: memory ran out"}, timestamp=7)
    assert _first_failure({0: lost, 1: ours}) == (1, "TrainError: memory ran out")
    earlier = SimpleNamespace(message="Signal 9 (SIGKILL) received", timestamp=6)
    assert _first_failure({0: lost, 1: ours, 2: earlier}) == (2, "Signal 9 (SIGKILL) received")


def test_the_error_of_the_rank_that_failed_is_found_where_torch_tells_of_another(tmp_path: Path) -> None:
    """Two ranks that have ended when the launcher looks: torch tells of the first of them."""
    for rank, message, second in (
        (0, "RuntimeError: Connection closed by peer", "101"),
        (1, "TrainError: full", "100"),
    ):
        (tmp_path / str(rank)).mkdir()
        stored = {"message": message, "extraInfo": {"timestamp": second}}
        (tmp_path / str(rank) / "error.json").write_text(json.dumps({"message": stored}))
    told = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(tmp_path / "0" / "error.json"))
    assert _first_failure({0: told}) == (0, "RuntimeError: Connection closed by peer")
    assert _first_failure(_with_siblings({0: told})) == (1, "TrainError: full")
