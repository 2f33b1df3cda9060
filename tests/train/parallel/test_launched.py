"""What a launcher announces, and half of it, which ends in an error and not in waiting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lmms.configs.errors import ConfigError
from lmms.configs.load import to_yaml
from lmms.train.parallel.launched import Launched, launched
from tests.kit.runs import run_config, write_run

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The environment of a process with just these of the names."""

    def set_names(**values: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_names


def test_a_rank_among_others_and_one_alone(announce) -> None:  # type: ignore[no-untyped-def]
    announce(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", **PLACE)
    assert launched() == Launched(rank=5, size=8, local_rank=1, together=True)
    for alone in ({}, {"WORLD_SIZE": "1"}):
        announce(**alone)
        assert launched() == Launched(rank=0, size=1, local_rank=0, together=False)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"RANK": "0"}, "RANK is set, but not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK is set, but not MASTER_PORT"),
        ({"RANK": "x", "WORLD_SIZE": "2", **PLACE}, "RANK is 'x' in the environment, expected a whole number"),
        ({"RANK": "-1", "WORLD_SIZE": "2", **PLACE}, "RANK is '-1' in the environment, expected a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2", **PLACE}, "RANK is 2, expected 0 to 1, since WORLD_SIZE is 2"),
        ({"RANK": "0", "WORLD_SIZE": "0", **PLACE}, "WORLD_SIZE is '0' in the environment, .* at least 1"),
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is '' in the environment"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK is 'one' in the environment"),
    ],
)
def test_half_of_it_or_no_number_is_an_error(announce, values: dict[str, str], said: str) -> None:  # type: ignore[no-untyped-def]
    announce(**values)
    with pytest.raises(ConfigError, match=said):
        launched()


def test_a_run_that_would_wait_for_nobody_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(run_config(write_run(tmp_path, "qwen3"))))
    command = [sys.executable, "-m", "lmms.cli", "train", "--config", tmp_path / "run.yaml"]
    environment = {**os.environ, "WORLD_SIZE": "2", "COLUMNS": "500"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert done.stderr.startswith("error: WORLD_SIZE is 2, but RANK is not set")
