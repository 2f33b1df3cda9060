"""lmms demo, whole: it draws, prepares, trains, is killed, resumes, exports, and the model has learned to see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmms.cli.demo import story
from lmms.cli.demo.ask import ask
from lmms.cli.demo.draw import draw_pictures
from lmms.cli.demo.story import STEPS
from lmms.configs.errors import ConfigError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    command = [sys.executable, "-m", "lmms.cli", "demo", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder, result.stdout


def test_the_demo_is_killed_resumes_and_answers_from_the_pixels(demo: tuple[Path, str]) -> None:
    _, output = demo
    assert "killed after step" in output
    assert "resumed from run/step-" in output
    assert "answers about unseen pictures are right" in output


def test_the_metrics_hold_every_step_once_in_spite_of_the_kill(demo: tuple[Path, str]) -> None:
    import json

    folder, _ = demo
    steps = [json.loads(line)["step"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1))


def test_answers_follow_the_picture_and_not_the_question(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = demo
    pictures = draw_pictures(tmp_path, "other", 40, 1)
    answers = ask(folder / "model", tmp_path, pictures)
    assert sum(a == p.answers for a, p in zip(answers, pictures, strict=True)) >= 32
    swapped = ask(folder / "model", tmp_path, pictures[1:] + pictures[:1])
    assert swapped == answers[1:] + answers[:1]


def test_a_folder_that_is_there_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path} exists; remove it or name another folder"):
        story.demo(out=tmp_path)


def test_the_same_seed_draws_the_same_pictures(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        draw_pictures(tmp_path / name, "set", 20, 3)
    files = [sorted((tmp_path / name).rglob("*.*")) for name in ("a", "b")]
    assert len(files[0]) == 21
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]
