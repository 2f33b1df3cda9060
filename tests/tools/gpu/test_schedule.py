"""The ladder as data, and what is measured when."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.load import load_config
from lmms.configs.settings.train import TrainConfig
from tools.gpu.goals import GOALS
from tools.gpu.main import _too_large
from tools.gpu.processes import Piece, Running
from tools.gpu.recipes import COMPARATORS, RECIPE
from tools.gpu.rungs import CANDIDATES, LADDER, LEAST, OF_MODEL, OTHERS, RECOMPUTE, rung_of
from tools.gpu.schedule import (
    BUDGET,
    FACTS_SECONDS,
    FIRST,
    LARGE,
    LIMIT,
    PACKS_SECONDS,
    PADDED,
    SECOND,
    allowed,
    latest,
    memory_pieces,
    pack_pieces,
    pieces,
)
from tools.gpu.sizes import FULL, MINI
from tools.gpu.training import settings_of


def test_each_rung_is_the_one_below_and_a_change() -> None:
    assert LADDER[0].name == "eager"
    for below, rung in pairwise(LADDER):
        assert (rung.settings, rung.loss) != (below.settings, below.loss)
        assert below.settings.keys() <= rung.settings.keys()
    assert CANDIDATES[0] == LEAST
    assert CANDIDATES[-1] == LADDER[-1].name
    assert rung_of(LEAST).settings["kernels.compile"]


@pytest.mark.parametrize("rung", [*LADDER, *OTHERS], ids=lambda rung: str(rung.name))
def test_every_rung_is_a_run_file_that_lmms_takes(rung: Any) -> None:
    for model in (FIRST, LARGE):
        config = load_config(TrainConfig, None, values=settings_of(model, "vision", rung, "/packs", "/out", FULL))
        assert config.data.global_packs == FULL.packs
        assert config.model.init == "random"
        assert (config.train["default"] == "frozen") == (model in OF_MODEL)
    assert RECOMPUTE in rung.settings


def test_the_schedule_has_every_piece_once_the_goals_first() -> None:
    names = [piece.name for piece in pieces(Path("packs"), FULL)]
    assert len(set(names)) == len(names)
    for model, packs, *_ in GOALS:
        assert names.index(f"training {model} {packs} {LEAST}") < 20
        for rung in CANDIDATES:
            assert f"training {model} {packs} {rung}" in names
    for model in (FIRST, SECOND):
        for rung in LADDER:
            assert f"training {model} vision {rung.name}" in names
        for name in COMPARATORS:
            assert f"comparator {model} {name}" in names
        for name in RECIPE:
            assert names.index(f"comparator {model} {name}") < 20
    assert PADDED in COMPARATORS
    assert f"memory {FIRST} vision" in [piece.name for piece in memory_pieces(Path("packs"), MINI)]


def test_only_what_measures_lmms_or_the_machine_decides_the_exit_code() -> None:
    others = {piece.name for piece in pieces(Path("packs"), FULL) if not piece.ours}
    assert {name for name in others if not name.startswith("comparator ")} == {
        *(f"attention {name}" for name in ("flash-attn-2", "flash-attn-3", "flash-attn-4", "cudnn", "flex")),
        *(f"loss {name}" for name in ("torch", "liger", "cut")),
        *(f"training {FIRST} vision {rung.name}" for rung in OTHERS),
    }
    assert len([name for name in others if name.startswith("comparator ")]) == 2 * len(COMPARATORS)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.1])
def test_the_command_ends_in_time_however_long_its_pieces_take(share: float) -> None:
    """share: of its own limit that each takes; one that takes more is killed."""
    left = BUDGET - 2 * FACTS_SECONDS - PACKS_SECONDS  # facts are asked for anew where forking does not do
    assert {piece.seconds for piece in pack_pieces(Path("packs"), FULL)} == {PACKS_SECONDS}
    begun = 0
    for piece in pieces(Path("packs"), FULL):
        gets = allowed(piece, left)
        assert gets == 0 or piece.least <= gets <= min(piece.seconds, left)
        left -= share * gets
        begun += gets > 0
    assert left >= 0
    assert begun >= 3
    assert LIMIT == 8 * 60
    assert BUDGET + 15 <= LIMIT


def test_the_list_says_when_a_piece_begins_at_the_latest() -> None:
    piece = Piece(name="a", kind="loss", settings={}, seconds=40.0, least=10.0)
    found = list(latest([piece, replace(piece, name="b"), replace(piece, name="c", least=30.0)], 220.0))
    assert [(one.name, left) for one, left in found] == [("a", 100.0), ("b", 60.0), ("c", None)]


def test_a_training_that_the_dry_run_does_not_fit_is_left_out(tmp_path: Path) -> None:
    (memory, *_) = memory_pieces(tmp_path, FULL)
    file = tmp_path / "known.json"
    file.write_text('{"eager": {"weights": 60, "llm": 30, "allowance": 900}}')
    beside = [Running(memory, file, file, 0.0)]
    settings = {"model": FIRST, "packs": "vision", "rung": "eager"}
    piece = Piece(name="t", kind="training", settings=settings, seconds=1.0)
    assert "expects" in _too_large(piece, beside, 80)
    assert _too_large(piece, beside, 90) == ""
    assert _too_large(piece, beside, None) == ""
    other = Piece(name="t", kind="training", settings={**settings, "rung": "+ compile"}, seconds=1.0)
    assert _too_large(other, beside, 80) == ""
    assert _too_large(Piece(name="c", kind="comparator", settings=settings, seconds=1.0), beside, 80) == ""
