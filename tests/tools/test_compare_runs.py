"""tools/compare_runs.py says at which step two runs part, and by what."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.errors import TrainError
from lmms.train.watch.metrics import METRICS_NAME
from tools.compare_runs import main


def write_run(folder: Path, lines: list[dict[str, Any]]) -> str:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def steps(count: int = 4) -> list[dict[str, Any]]:
    return [
        {"step": i, "digest": f"{i:016x}", "position": 8 * i, "loss": 5.0 - i / 7, "eval_loss": None}
        for i in range(1, count + 1)
    ]


def test_equal_runs_agree_and_steps_of_one_alone_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write_run(tmp_path / "a", steps(4)), write_run(tmp_path / "b", steps(6)[1:])]) == 0
    text = capsys.readouterr().out
    assert "the same in all 3 steps of both" in text
    assert "a alone has 1 steps, 1 to 1" in text
    assert "b alone has 2 steps, 5 to 6" in text


def test_the_first_step_with_other_packs_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = steps()
    other[2]["digest"] = other[3]["digest"] = "f" * 16
    assert main([write_run(tmp_path / "a", steps()), write_run(tmp_path / "b", other)]) == 1
    assert "step 3 consumed 0000000000000003 at 24 packs, and ffffffffffffffff" in capsys.readouterr().out


def test_losses_may_differ_by_as_much_as_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = steps()
    other[1]["loss"] *= 1 + 1e-7
    runs = [write_run(tmp_path / "a", steps()), write_run(tmp_path / "b", other)]
    assert main(runs) == 1
    assert "step 2 has loss" in capsys.readouterr().out
    assert main([*runs, "--rel", "1e-6"]) == 0


def test_an_evaluation_that_one_run_lacks_is_a_difference(tmp_path: Path) -> None:
    other = steps()
    other[3]["eval_loss"] = 1.0
    assert main([write_run(tmp_path / "a", steps()), write_run(tmp_path / "b", other), "--rel", "1"]) == 1


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a", steps(4)), write_run(tmp_path / "b", steps(4))]
    with (tmp_path / "b" / METRICS_NAME).open("a") as file:
        file.write('{"step": 5, "dig')
    assert main(runs) == 0
    assert "the same in all 4 steps of both" in capsys.readouterr().out


def test_folders_that_are_no_runs_or_share_no_step_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="cannot be read"):
        main([str(tmp_path), str(tmp_path)])
    with pytest.raises(TrainError, match="no step in common"):
        main([write_run(tmp_path / "a", steps(2)[:1]), write_run(tmp_path / "b", steps(2)[1:])])
