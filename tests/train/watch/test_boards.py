"""TensorBoard and wandb: what their own files hold after runs, resumptions and failures."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from lmms.configs.errors import ConfigError, TrainError
from lmms.train.run import train
from lmms.train.watch.boards import TENSORBOARD_NAME, WANDB_NAME, numbers, open_tensorboard, open_wandb
from lmms.train.watch.metrics import SetLog, StepLog
from tests.kit.logs import step_log
from tests.kit.runs import run_config, silent, write_run


def tensorboard_steps(output: Path, name: str = "loss") -> list[tuple[int, float]]:
    """Step and value of a curve, as TensorBoard's own reader finds them."""
    reader = EventAccumulator(str(output / TENSORBOARD_NAME))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def wandb_lines(output: Path) -> list[dict[str, Any]]:
    """The steps in the files of offline runs, by session; numbers under their names."""
    lines: list[dict[str, Any]] = []
    for file in sorted(output.glob("wandb/offline-run-*/run-*.wandb")):
        for data in leveldb_records(file.read_bytes()):
            record = Record.FromString(data)
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                lines.append({name: json.loads(value) for name, value in items.items()})
    return lines


def leveldb_records(data: bytes, start: int = 7, block: int = 32768) -> list[bytes]:
    """The records of a log in LevelDB's format, after wandb's own header of seven bytes."""
    records, part, at = [], b"", start
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(part)
            part = b""
    return records


def wandb_service() -> int:
    """The process that writes for wandb, a child of this one."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        name, _, rest = stat.read_text().partition(") ")
        if "(wandb-core" in name and int(rest.split()[1]) == os.getpid():
            return int(stat.parent.name)
    raise AssertionError("wandb has no service here")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Settings of a small run with both boards."""
    boards = {"log.tensorboard": True, "log.wandb": "project", "log.wandb_mode": "offline"}
    return {**write_run(tmp_path, "qwen3"), **boards, "save_steps": 2, "optim.schedule": "constant"}


def test_a_resumed_run_is_on_both_boards_with_each_step_once(settings: dict[str, Any]) -> None:
    output = Path(settings["output"])
    logs: dict[int, StepLog] = {}
    told: list[str] = []

    def keep(event: StepLog | str) -> None:
        if isinstance(event, StepLog):
            logs[event.step] = event
        else:
            told.append(event)

    train(run_config(settings, max_steps=3), keep)
    # As after a kill before the next checkpoint: step 3 has been shown, and is taken again.
    shutil.rmtree(output / "step-00000003")
    train(run_config(settings, max_steps=5), keep)

    assert tensorboard_steps(output) == [(step, pytest.approx(logs[step].loss)) for step in (1, 2, 3, 4, 5)]
    lines = wandb_lines(output)
    assert [line["_step"] for line in lines] == [1, 2, 3, 4, 5]
    for line in lines:
        step = int(line["_step"])
        # What wandb has of step 3 is of the first time it was taken: the same loss, at another speed.
        expected = {"loss": logs[step].loss} if step == 3 else numbers(logs[step])
        assert {name: line[name] for name in expected} == pytest.approx(expected)
    runs = {file.name for file in output.glob("wandb/offline-run-*/run-*.wandb")}
    known = json.loads((output / WANDB_NAME).read_text())
    assert runs == {f"run-{known['id']}.wandb"}
    assert known["step"] == 5
    assert sum(text.startswith("wandb: ") and "offline-run-" in text for text in told) == 2


def test_a_run_that_starts_anew_forgets_what_the_boards_had(settings: dict[str, Any]) -> None:
    output = Path(settings["output"])
    train(run_config(settings, max_steps=3, save_steps=100), silent)
    first = json.loads((output / WANDB_NAME).read_text())["id"]
    shutil.rmtree(output / "step-00000003")
    train(run_config(settings, max_steps=2, save_steps=100), silent)
    assert [step for step, _ in tensorboard_steps(output)] == [1, 2]
    assert json.loads((output / WANDB_NAME).read_text())["id"] != first


def test_wandb_is_not_told_what_may_be_a_credential(settings: dict[str, Any]) -> None:
    secret = "https://user:hunter2@host/shards?token=hunter2"
    config = run_config(settings)
    config = replace(config, data=replace(config.data, shards=secret))
    output = Path(settings["output"])
    output.mkdir()
    board = open_wandb(
        replace(config, data=replace(config.data, shards=secret)), "project", output, 0, lambda event: None
    )
    board.close(True)
    (file,) = output.glob("wandb/offline-run-*/run-*.wandb")
    assert b"https://host/shards" in file.read_bytes()
    assert b"hunter2" not in file.read_bytes()


def test_every_number_of_a_line_is_shown_under_its_key() -> None:
    sets = {"s3://a": SetLog(loss=1.5, share=0.5, epoch=0.1), "b": SetLog(loss=None, share=0.5, epoch=2.0)}
    log = step_log(
        3,
        sets=sets,
        eval_loss=1.0,
        loss_by_source={"y.jsonl": 3.0},
        eval_loss_by_source={"x.jsonl": 2.0},
        alarms=("vision",),
    )
    found = numbers(log)
    assert found["sets/s3://a/loss"] == 1.5
    assert found["eval_loss_by_source/x.jsonl"] == 2.0
    assert found["loss_by_source/y.jsonl"] == 3.0
    assert found["alarms"] == 1
    assert found["grad_norm_aligner"] == 0.0
    assert not {"step", "time", "digest", "mfu", "grad_norm_vision", "sets/b/loss"} & found.keys()


@pytest.mark.parametrize(
    ("setting", "environment", "mode"),
    [(None, "offline", "offline"), ("offline", "online", "offline"), (None, None, "online")],
)
def test_the_mode_of_wandb_is_the_settings_then_the_environments(
    setting: str | None, environment: str | None, mode: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[str] = []

    def init(**given: Any) -> None:
        modes.append(given["mode"])
        raise OSError("enough")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    if environment:
        monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr(wandb, "init", init)
    config = run_config({**settings, "log.wandb": "p", "log.wandb_mode": setting})
    with pytest.raises(TrainError, match="enough"):
        open_wandb(config, "p", Path(settings["output"]), 0, silent)
    assert modes == [mode]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_stops_the_run_before_it_reads_a_shard(
    name: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    wanted = {"log.tensorboard": name == "tensorboard", "log.wandb": "p" if name == "wandb" else None}
    if name == "tensorboard":
        wanted["log.wandb_mode"] = None
    told: list[StepLog | str] = []
    config = run_config({**settings, **wanted, "data.shards": "/nowhere"})
    with pytest.raises(
        ConfigError, match=rf"log\.{name} is set, but the package {name} .*pip install 'lmms\[{name}\]'"
    ):
        train(config, told.append)
    assert told == []


def test_a_login_that_is_missing_stops_the_run_before_its_first_step(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"no login for wandb; run `wandb login`.* log\.wandb_mode to offline"):
        train(run_config({**settings, "log.wandb_mode": "online"}), silent)
    assert not (Path(settings["output"]) / "metrics.jsonl").exists()


def test_a_login_that_the_server_does_not_take_stops_the_run_before_its_first_step(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "no key")
    with pytest.raises(TrainError, match=r"log\.wandb: the run cannot be opened \(.*API key.*wandb_mode to offline"):
        train(run_config({**settings, "log.wandb_mode": "online"}), silent)
    assert (Path(settings["output"]) / "metrics.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_written_stops_the_run_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match=r"log\.tensorboard: .*file cannot be written"):
        open_tensorboard(tmp_path / "file", 0)


@pytest.mark.parametrize("text", ["{", "[1]", '{"id": "a"}'])
def test_a_damaged_wandb_json_is_named(text: str, settings: dict[str, Any]) -> None:
    train(run_config({**settings, "log.tensorboard": False}, max_steps=2), silent)
    (Path(settings["output"]) / WANDB_NAME).write_text(text)
    with pytest.raises(TrainError, match=r"wandb\.json is damaged .*remove it for a new run"):
        train(run_config({**settings, "log.tensorboard": False}, max_steps=4), silent)


def test_a_board_that_dies_is_an_alarm_then_and_at_the_end_and_the_run_goes_on(settings: dict[str, Any]) -> None:
    told: list[StepLog | str] = []

    def kill_after_two(event: StepLog | str) -> None:
        told.append(event)
        if isinstance(event, StepLog) and event.step == 2:
            os.kill(wandb_service(), signal.SIGKILL)

    train(run_config(settings, max_steps=8), kill_after_two)
    assert [event.step for event in told if isinstance(event, StepLog)] == list(range(1, 9))
    alarms = [event for event in told if isinstance(event, str) and event.startswith("ALARM: log.wandb failed")]
    assert len(alarms) == 2
    assert told[-2] == alarms[1]
    assert [step for step, _ in tensorboard_steps(Path(settings["output"]))] == list(range(1, 9))


_FULL = """
import resource, sys
from pathlib import Path
from lmms.train.watch.boards import open_tensorboard
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
board = open_tensorboard(Path(sys.argv[1]), 0)
for step in range(1, 1000):
    try:
        board.write(step, 0.0, {"loss": 1.0})
    except OSError as error:
        print(step, error.strerror)
        break
"""


def test_a_disk_that_is_full_is_an_error_of_the_step_and_what_was_shown_stays(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path / TENSORBOARD_NAME)], capture_output=True, text=True, timeout=600
    )
    step, reason = done.stdout.split(maxsplit=1)
    assert reason.strip() == "File too large"
    assert [number for number, _ in tensorboard_steps(tmp_path)] == list(range(1, int(step)))
