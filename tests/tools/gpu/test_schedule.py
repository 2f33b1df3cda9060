"""The ladder as data, and what is measured when."""

import pickle
from itertools import pairwise
from multiprocessing import Process
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from tools.gpu.main import _too_large
from tools.gpu.pieces.ladder import CANDIDATES, LADDER, LEAST, LORA, NAMES, OTHERS, RECOMPUTE, rung_of
from tools.gpu.pieces.models import FIRST, FULL, LARGE, SECOND
from tools.gpu.pieces.training import settings_of
from tools.gpu.processes import Running
from tools.gpu.report.goals import GOALS
from tools.gpu.rivals.comparator import COMPARATORS, RECIPE
from tools.gpu.schedule import BUDGET, FACTS_SECONDS, PACKS_SECONDS, Schedule, allowed

SCHEDULE = Schedule(Path("packs"), FULL)
PIECES = list(SCHEDULE.pieces())
BY_NAME = {piece.name: piece for piece in PIECES}


def test_each_rung_is_the_one_below_and_a_change() -> None:
    assert NAMES[0] == "eager"
    for below, rung in pairwise(LADDER):
        assert (rung.settings, rung.loss) != (below.settings, below.loss)
        assert below.settings.keys() <= rung.settings.keys()
    assert (CANDIDATES[0], CANDIDATES[-1]) == (LEAST, NAMES[-1])
    assert rung_of(LEAST).settings["kernels.compile"]


@pytest.mark.parametrize("rung", [*LADDER, *OTHERS], ids=lambda rung: str(rung.name))
def test_every_rung_is_a_run_file_that_lmms_takes(rung: Any) -> None:
    for model in (FIRST, LARGE):
        config = load_config(TrainConfig, None, values=settings_of(model, "vision", rung, "/packs", "/out", FULL))
        assert config.data.global_packs == FULL.packs
        assert config.model.init == "random"
        assert (config.train["default"] == "frozen") == (model in LORA)
    assert RECOMPUTE in rung.settings


def test_the_schedule_has_every_piece_once_the_goals_first() -> None:
    names = [piece.name for piece in PIECES]
    assert len(BY_NAME) == len(names)
    for model, packs, *_ in GOALS:
        assert names.index(f"training {model} {packs} {LEAST}") < 20
        assert {f"training {model} {packs} {rung}" for rung in CANDIDATES} <= BY_NAME.keys()
    for model in (FIRST, SECOND):
        assert {f"training {model} vision {rung}" for rung in NAMES} <= BY_NAME.keys()
        assert {f"comparator {model} {name}" for name in COMPARATORS} <= BY_NAME.keys()
        assert all(names.index(f"comparator {model} {name}") < 20 for name in RECIPE)


def test_packs_and_predictions_are_those_that_the_chosen_pieces_need() -> None:
    assert [piece.name for piece in SCHEDULE.packs(PIECES)] == [f"packs {model}" for model in (FIRST, SECOND, LARGE)]
    chosen = [BY_NAME["loss chunked"], BY_NAME[f"training {SECOND} vision eager"]]
    assert [piece.name for piece in SCHEDULE.packs(chosen)] == [f"packs {SECOND}"]
    (memory,) = SCHEDULE.memory([*chosen, BY_NAME[f"training {SECOND} vision {LEAST}"]])
    assert (memory.name, memory.settings["rungs"]) == (f"memory {SECOND} vision", ["eager", LEAST])
    assert [piece.name for piece in SCHEDULE.packs([BY_NAME["ceilings"]])] == []


def test_every_piece_can_be_sent_to_a_process_that_is_not_forked() -> None:
    for piece in (*SCHEDULE.packs(PIECES), *SCHEDULE.memory(PIECES), *PIECES):
        assert pickle.loads(pickle.dumps(piece)) == piece


def test_only_what_measures_lmms_or_the_machine_decides_the_exit_code() -> None:
    others = {piece.name for piece in PIECES if not piece.ours}
    assert {name for name in others if not name.startswith("comparator ")} == {
        *(f"attention {name}" for name in ("flash-attn-2", "flash-attn-3", "flash-attn-4", "cudnn")),
        *(f"loss {name}" for name in ("torch", "liger", "cut")),
        *(f"training {FIRST} vision {rung.name}" for rung in OTHERS),
    }
    assert len([name for name in others if name.startswith("comparator ")]) == 2 * len(COMPARATORS)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.1])
def test_the_command_ends_in_time_however_long_its_pieces_take(share: float) -> None:
    """share: of its own limit that each takes; one that takes more is killed."""
    left = BUDGET - 2 * FACTS_SECONDS - PACKS_SECONDS  # facts are asked for anew where forking does not do
    assert {piece.seconds for piece in SCHEDULE.packs(PIECES)} == {PACKS_SECONDS}
    begun = 0
    for piece in PIECES:
        gets = allowed(piece, left)
        assert gets == 0 or piece.least <= gets <= min(piece.seconds, left)
        left -= share * gets
        begun += gets > 0
    assert left >= 0
    assert begun >= 3
    assert BUDGET + 15 <= 8 * 60


def test_a_training_that_the_dry_run_does_not_fit_is_left_out(tmp_path: Path) -> None:
    piece = BY_NAME[f"training {FIRST} vision eager"]
    (memory,) = SCHEDULE.memory([piece])
    file = tmp_path / "known.json"
    file.write_text('{"eager": {"weights": 60, "llm": 30, "allowance": 900}}')
    predictions = [Running(memory, file, file, 0.0, Process())]
    assert "expects" in _too_large(piece, predictions, 80)
    assert _too_large(piece, predictions, 90) == ""
    assert _too_large(piece, predictions, None) == ""
    for other in (f"training {FIRST} vision {LEAST}", f"training {SECOND} vision eager", "ceilings"):
        assert _too_large(BY_NAME[other], predictions, 80) == ""
