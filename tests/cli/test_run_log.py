"""train.log, and what the view says before, between and after steps."""

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lmms.cli.live import view as live
from lmms.cli.live.run_log import LOG_NAME, run_log
from lmms.configs.errors import TrainError
from tests.kit.logs import step_log


def viewed(output: Path, *events: Any) -> None:
    """A run that says these events, and ends with those of them that are exceptions."""
    with live.view(output) as say:
        for event in events:
            if isinstance(event, BaseException):
                raise event
            say(event)


def test_lines_wait_for_the_folder_of_the_run(tmp_path: Path) -> None:
    add = run_log(tmp_path / "run", pytest.fail)
    add("opening the shards ...")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    add("started")
    lines = (tmp_path / "run" / LOG_NAME).read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[20:] for line in lines] == ["opening the shards ...", "started"]


def test_a_log_that_cannot_be_written_is_said_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).mkdir()
    said: list[str] = []
    add = run_log(tmp_path, said.append)
    add("one")
    add("two")
    assert said == [f"ALARM: {tmp_path / LOG_NAME} cannot be written (Is a directory); the run goes on without"]


def test_a_disk_that_is_full_is_named_in_a_short_sentence(tmp_path: Path) -> None:
    (tmp_path / LOG_NAME).symlink_to("/dev/full")
    said: list[str] = []
    run_log(tmp_path, said.append)("one")
    (line,) = said
    assert line.startswith(
        f"ALARM: {tmp_path / LOG_NAME} cannot be written (the disk of {tmp_path} is full: 24 bytes are"
    )
    assert line.endswith("make room, or choose another folder); the run goes on without")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device"), "error: OSError: [Errno 28] No space left on device"),
        (RuntimeError("NCCL error: remote process exited"), "error: RuntimeError: NCCL error: remote process exited"),
    ],
)
def test_the_log_has_errors_that_are_not_ours(tmp_path: Path, error: Exception, says: str) -> None:
    with pytest.raises(type(error)):
        viewed(tmp_path, "started at step 0", error)
    assert [line[20:] for line in (tmp_path / LOG_NAME).read_text().splitlines()] == ["started at step 0", says]


def test_the_log_has_what_the_terminal_said_and_why_the_run_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(TrainError):
        viewed(tmp_path, "started at step 0", step_log(1, loss=2.5), TrainError("the disk is full"))
    shown = capsys.readouterr().out.splitlines()
    lines = [line[20:] for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert lines[:2] == shown
    assert lines[2:] == ["error: the disk is full"]


@pytest.mark.parametrize(("steps", "says"), [((), "before its first step was logged"), ((1, 2), "after step 2")])
def test_ctrl_c_says_what_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: tuple[int, ...], says: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        viewed(tmp_path, *map(step_log, steps), KeyboardInterrupt())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"stopped by Ctrl-C {says}; nothing is saved: the same command starts again from step 0"


def test_what_takes_long_is_shown_until_something_else_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Console(width=90, force_terminal=True, file=io.StringIO(), color_system=None)
    monkeypatch.setattr(live.ui, "console", lambda: out)
    course = live.Course()
    with live._live(out, course) as show:
        show("reading the weights ...")
        assert course.doing == "reading the weights ..."
        show("started at step 0")
        assert course.doing == ""
    assert isinstance(out.file, io.StringIO)
    assert "reading the weights ..." in out.file.getvalue()
