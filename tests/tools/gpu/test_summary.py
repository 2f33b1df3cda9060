"""What the pieces come to together: goals, shares, the ladder as data."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lmms.configs.load import load_config
from lmms.configs.train import TrainConfig
from tools.gpu.comparators import COMPARATORS
from tools.gpu.main import _too_large
from tools.gpu.processes import Piece, Running
from tools.gpu.rungs import BEST, LADDER, OF_MODEL, OTHERS, RECOMPUTE, rung_of
from tools.gpu.schedule import CHUNKED, FIRST, LARGE, PADDED, SECOND, memory_pieces, pieces
from tools.gpu.sizes import FULL, MINI
from tools.gpu.summary import GOALS, summarise
from tools.gpu.training import settings_of


def test_each_rung_is_the_one_below_and_a_change() -> None:
    assert LADDER[0].name == "eager"
    for below, rung in pairwise(LADDER):
        assert (rung.settings, rung.loss) != (below.settings, below.loss)
        assert below.settings.keys() <= rung.settings.keys()
    assert BEST in [rung.name for rung in LADDER]
    assert rung_of(BEST).settings["kernels.compile"]


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
    wanted = [f"training {model} {packs} {BEST}" for model, packs, *_ in GOALS]
    assert max(names.index(name) for name in wanted) < 10
    for rung in LADDER:
        assert f"training {SECOND} vision {rung.name}" in names
    for name in COMPARATORS:
        assert f"comparator {FIRST} {name}" in names
    assert {CHUNKED, PADDED} <= COMPARATORS.keys()
    assert f"memory {FIRST} vision" in [piece.name for piece in memory_pieces(Path("packs"), MINI)]


def training(name: str, model: str, packs: str, seconds: float, kind: str = "training") -> dict[str, Any]:
    trace = {"classes": {"gemm": 0.5}, "busy": 0.9, "span": 1.0, "kernels": 3}
    steps = {"seconds": [seconds, seconds], "waited": [0.1, 0.1], "peak_memory": 50 * 10**9, "recompiles": 0}
    result = {
        "model": model,
        "packs": packs,
        "name": name,
        "seconds": seconds,
        "tokens_per_s": 32768 / seconds,
        "flops": 4e14,
        "passed": True,
        "faults": [],
        "steps": steps,
        "trace": trace,
        "waits": {"train/step.py:1": 1},
        "recompute": "full",
        "optimizer_bytes": 10**9,
        "tokens": 32768,
        "target_tokens": 8000,
        "patches": 0,
    }
    settings = {"folder": "none"}
    return {"name": f"{kind} {model} {packs} {name}", "kind": kind, "settings": settings, "result": result}


REPORT: dict[str, Any] = {
    "facts": {"peak_flops": 989e12},
    "pieces": [
        {"name": "ceilings", "kind": "ceilings", "result": {"sustained_flops": 700e12, "copy": 2.5e12}},
        {"name": f"memory {FIRST} vision", "kind": "memory", "result": {BEST: {"weights": 40, "llm": 2}}},
        training(BEST, FIRST, "vision", 1.0),
        training(BEST, FIRST, "text", 0.8),
        training("packed, varlen", FIRST, "vision", 2.5, "comparator"),
        training("packed, varlen, liger", FIRST, "vision", 2.2, "comparator"),
        training("padded, sdpa", FIRST, "vision", 2.0, "comparator"),
        {"name": "loss whole", "kind": "loss", "result": None},
    ],
}


def test_a_training_is_held_against_the_card_and_the_packed_recipe() -> None:
    summary = summarise(REPORT, FULL)
    best, text, *_ = summary["trainings"]
    assert best["mfu"] == pytest.approx(4e14 / 989e12)
    assert best["share of the measured product"] == pytest.approx(4e14 / 700e12)
    assert best["times the packed recipe"] == pytest.approx(2.2)
    assert best["predicted_memory"] == 42
    assert best["data_wait"] == pytest.approx(0.1)
    assert best["idle"] == pytest.approx(0.1)
    assert best["waits"] == 1
    assert best["floors"] is None
    assert text["times the packed recipe"] is None


def test_a_goal_is_met_or_not_or_not_measured() -> None:
    met = {(one["goal"], one["wanted"]): one["met"] for one in summarise(REPORT, FULL)["goals"]}
    assert met == {
        (f"{FIRST}, text: mfu", 0.46): True,
        (f"{FIRST}, vision: mfu", 0.42): False,
        (f"{SECOND}, vision: mfu", 0.38): None,
        (f"{FIRST}, vision: times the packed recipe", 2.0): True,
        (f"{SECOND}, vision: times the packed recipe", 2.0): None,
        (f"{FIRST}, vision: times its floor", 1.15): None,
    }
    assert summarise(REPORT, MINI)["goals"] == []


def test_floors_come_from_the_products_and_kernels_of_the_same_packs() -> None:
    product = {"layers": 2, "again": True, "forward": 1e-3, "input_grad": 1e-3, "weight_grad": 1e-3}
    products = [{**product, "shape": "head", "head": True}, {**product, "shape": "body", "head": False}]
    speed = {"layer": "language", "count": 2, "forward": 1e-3, "backward": 2e-3}
    kernel = {"model": FIRST, "packs": "vision", "passed": True, "speeds": [speed]}
    more = [
        {"name": f"products {FIRST} vision", "kind": "products", "result": products},
        {"name": "attention varlen", "kind": "attention", "result": [kernel]},
    ]
    best, text, *_ = summarise({**REPORT, "pieces": REPORT["pieces"] + more}, FULL)["trainings"]
    assert best["floors"]["gemm"] == pytest.approx(2 * 2 * 4e-3)
    assert best["floors"]["attention"] == pytest.approx(2 * 2 * 4e-3)
    assert best["times its floor"] == pytest.approx(1.0 / sum(best["floors"].values()))
    assert text["floors"] is None


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
