"""What the pieces come to together: figures, which comparators count, goals held to nothing that was not measured."""

import io
from copy import deepcopy
from typing import Any

import pytest
from rich.console import Console

from tests.tools.gpu.reports import comparator, not_done, piece, replaced, training
from tools.gpu.pieces.ladder import CANDIDATES, LEAST
from tools.gpu.pieces.models import FIRST, FULL, MINI, SECOND
from tools.gpu.report.goals import GOALS
from tools.gpu.report.show import show
from tools.gpu.report.summary import summarise
from tools.gpu.rivals.comparator import PADDED, STAND_IN

MFU, TIMES, FLOOR = (f"{FIRST}, vision: {figure}" for figure in ("mfu", "times the packed recipe", "times its floor"))
VARLEN, FLASH = (f"packed, {kernel}, liger, linear patches" for kernel in ("varlen", "flash-attn-2"))
H100 = {"peak_flops": 989e12}
# 4e14 operations at 989e12 a second, 42 % of it: 0.963 s
RUNGS = [
    training(rung, FIRST, "vision", seconds) for rung, seconds in zip(CANDIDATES, (1.1, 1.2, 0.9, 1.0), strict=True)
]
NO_FLASH = not_done(comparator(FLASH, FIRST, "vision", 1.0), "not available", "flash_attn_2_cuda is not installed")
COMPARED = [comparator(VARLEN, FIRST, "vision", 2.0), NO_FLASH]
PIECES = [
    piece("ceilings", {"sustained_flops": 700e12, "copy": 2.5e12}),
    piece(f"memory {FIRST} vision", {LEAST: {"weights": 40, "llm": 2}}),
    training(LEAST, FIRST, "vision", 1.0),
    training(LEAST, FIRST, "text", 0.8),
    comparator(VARLEN, FIRST, "vision", 2.6),
    comparator(FLASH, FIRST, "vision", 2.2),
    comparator(STAND_IN, FIRST, "vision", 2.1),
    comparator(PADDED, FIRST, "vision", 2.0),
    piece("loss whole", outcome="not run", error="3 s were left"),
]


def best_of(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the first training."""
    figures: dict[str, Any] = summarise(H100, pieces, FULL)["trainings"][0]
    return figures


def goals(pieces: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {goal["goal"]: goal for goal in summarise(H100, pieces, FULL)["goals"]}


def why_not(pieces: list[dict[str, Any]], name: str) -> str:
    (rival,) = (rival for rival in summarise(H100, pieces, FULL)["recipes"] if rival["name"] == name)
    assert rival["counted"] == (not rival["why"])
    return str(rival["why"])


def test_a_training_is_held_against_the_card_and_the_packed_recipe() -> None:
    best, text, *_ = summarise(H100, PIECES, FULL)["trainings"]
    assert best["mfu"] == pytest.approx(4e14 / 989e12)
    assert best["share of the measured product"] == pytest.approx(4e14 / 700e12)
    assert (best["predicted_memory"], best["waits"], best["measured"]["gemm"]) == (42, 1, 0.5)
    assert best["data_wait"] == pytest.approx(0.1)
    assert best["idle"] == pytest.approx(0.1)
    assert best["floors"] is None
    # The faster of the two that are the recipe, not the stand-in and not what pads.
    assert best["times the packed recipe"] == pytest.approx(2.2)
    assert text["times the packed recipe"] is None


def test_a_comparator_that_does_not_count_says_why() -> None:
    assert why_not(PIECES, FLASH) == why_not(PIECES, VARLEN) == ""
    assert why_not(PIECES, STAND_IN) == "without Liger it is another recipe"
    assert why_not(PIECES, PADDED) == "it pads"
    missing = replaced(PIECES, not_done(PIECES[5], "not available", "Traceback\nLiger is not installed"))
    assert why_not(missing, FLASH) == "not available: Liger is not installed"
    assert best_of(missing)["times the packed recipe"] == pytest.approx(2.6)
    fault = "the loss did not fall: 12.0000, then 12.1000"
    for changed, why in (
        ({"faults": [fault]}, fault),
        ({"steps": {"losses": [12.1, 11.0]}}, "its first loss is 12.1, ours 12"),
        ({"steps": {"grad_norms": [2.5, 2.0]}}, "its first gradient norm is 2.5, ours 3"),
        ({"steps": {"grad_norms": [float("nan"), 2.0]}}, "its first gradient norm is nan, ours 3"),
        ({"outcome": "failed", "error": "CUDA error"}, "failed: CUDA error"),
    ):
        pieces = replaced(PIECES, comparator(FLASH, FIRST, "vision", 2.2, **changed))
        assert why_not(pieces, FLASH) == why
        assert best_of(pieces)["times the packed recipe"] == pytest.approx(2.6)
    alone = [other for other in PIECES if other["kind"] != "training"]
    assert why_not(alone, FLASH) == "no training of ours passed, to compare its numbers with"


def test_classes_are_not_shown_where_marks_are_missing() -> None:
    pieces = deepcopy(PIECES)
    pieces[2]["result"]["trace"]["marks"]["loss"] = 6
    best = best_of(pieces)
    assert best["measured"] is None
    assert best["unmarked"].startswith("marks {'loss': 6, 'optimizer': 2}, expected")


def test_floors_come_from_the_products_and_kernels_of_the_same_packs() -> None:
    product = {"layers": 2, "again": True, "forward": 1e-3, "input_grad": 1e-3, "weight_grad": 1e-3}
    products = [{**product, "shape": "head", "head": True}, {**product, "shape": "body", "head": False}]
    speed = {"layer": "language", "count": 2, "forward": 1e-3, "backward": 2e-3}
    kernel = {"model": FIRST, "packs": "vision", "passed": True, "speeds": [speed]}
    more = [piece(f"products {FIRST} vision", products), piece("attention varlen", [kernel])]
    best, text, *_ = summarise(H100, PIECES + more, FULL)["trainings"]
    assert best["floors"]["gemm"] == pytest.approx(2 * 2 * 4e-3)
    assert best["floors"]["attention"] == pytest.approx(2 * 2 * 4e-3)
    assert best["floors"]["optimizer"] == pytest.approx(1e9 / 2.5e12)
    assert best["times its floor"] == pytest.approx(1.0 / sum(best["floors"].values()))
    assert text["floors"] is None


def test_the_fastest_rung_that_passed_counts_and_is_named() -> None:
    mfu, times = (goals(RUNGS + COMPARED)[goal] for goal in (MFU, TIMES))
    assert mfu["rung"] == "+ recompute elementwise"
    assert mfu["found"] == pytest.approx(4e14 / 0.9 / 989e12)
    assert (mfu["verdict"], mfu["missing"]) == ("met", [])
    assert times["found"] == pytest.approx(2.0 / 0.9)
    assert times["verdict"] == "met"
    assert set(goals(RUNGS)) == {f"{model}, {packs}: {figure}" for model, packs, figure, _ in GOALS}
    failed = replaced(RUNGS, training(CANDIDATES[2], FIRST, "vision", 0.9, faults=["1 graphs were compiled"]))
    now = goals(failed + COMPARED)[MFU]
    assert now["rung"] == "+ recompute none"
    assert now["missing"] == ["+ recompute elementwise: 1 graphs were compiled"]
    late = replaced(RUNGS, training(CANDIDATES[2], FIRST, "vision", 0.9, outcome="not run", error="time was over"))
    assert goals(late)[MFU]["rung"] == "+ recompute none"


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        ("no memory", "the dry run expects 90 GB, the card has 80"),
        ("not run", "3 s were left"),
        ("failed", "CUDA error"),
    ],
)
def test_a_rung_that_is_missing_leaves_a_goal_incomplete_unless_another_meets_it(outcome: str, error: str) -> None:
    slow = replaced(replaced(RUNGS, not_done(RUNGS[2], outcome, error)), training(CANDIDATES[3], FIRST, "vision", 1.05))
    goal, missing = goals(slow)[MFU], [f"+ recompute elementwise: {outcome}, {error}"]
    assert (goal["verdict"], goal["rung"], goal["missing"]) == ("incomplete", "+ recompute none", missing)
    whole = replaced(slow, training(CANDIDATES[2], FIRST, "vision", 1.3))
    assert goals(whole)[MFU]["verdict"] == "not met"
    met = goals(replaced(slow, training(LEAST, FIRST, "vision", 0.5)))[MFU]
    assert (met["verdict"], met["rung"], met["missing"]) == ("met", LEAST, missing)


def test_nothing_measured_is_incomplete_and_says_what_was_not() -> None:
    goal = goals([not_done(RUNGS[0], "no memory", "CUDA out of memory")])[MFU]
    assert (goal["verdict"], goal["found"], goal["rung"]) == ("incomplete", None, None)
    others = [f"{rung}: not asked for" for rung in CANDIDATES[1:]]
    assert goal["missing"] == [f"{LEAST}: no memory, CUDA out of memory", *others]
    assert goals([])[f"{SECOND}, vision: mfu"]["verdict"] == "incomplete"
    assert summarise({}, RUNGS, MINI)["goals"] == []


def test_the_packed_recipe_is_held_against_only_when_all_of_it_that_can_run_has_run() -> None:
    without = goals(RUNGS + [not_done(rival, "not available", "no Liger") for rival in COMPARED])[TIMES]
    assert (without["verdict"], without["found"]) == ("incomplete", None)
    assert without["missing"] == ["no comparator with Liger can be had on this machine"]
    alone = goals(RUNGS + replaced(COMPARED, not_done(NO_FLASH, "not run", "3 s were left")))[TIMES]
    assert (alone["found"], alone["verdict"]) == (pytest.approx(2.0 / 0.9), "incomplete")
    assert alone["missing"] == [f"{FLASH}: not run: 3 s were left"]
    faster = goals(RUNGS + replaced(COMPARED, comparator(FLASH, FIRST, "vision", 1.5)))[TIMES]
    assert faster["verdict"] == "not met"


def test_a_floor_without_a_kernel_that_could_be_faster_is_none() -> None:
    product = {"layers": 1, "again": True, "forward": 0.06, "input_grad": 0.06, "weight_grad": 0.06}
    products = [{**product, "shape": "head", "head": True}, {**product, "shape": "body", "head": False}]
    speed = {"layer": "language", "count": 1, "forward": 0.05, "backward": 0.1}
    kernel = {"model": FIRST, "packs": "vision", "passed": True, "speeds": [speed]}
    cards = [
        piece("ceilings", {"sustained_flops": 700e12, "copy": 2.5e12}),
        piece(f"products {FIRST} vision", products),
        piece("attention varlen", [kernel]),
        piece("attention flash-attn-3", outcome="not available", error="no package"),
    ]
    assert goals(RUNGS + cards)[FLOOR]["verdict"] == "met"
    cudnn = piece("attention cudnn", outcome="too slow", error="not done after 60 s")
    goal = goals(RUNGS + cards + [cudnn])[FLOOR]
    assert goal["verdict"] == "incomplete"
    assert goal["missing"] == ["attention cudnn: too slow, not done after 60 s"]


def test_the_table_says_which_rung_and_what_is_missing() -> None:
    pieces = replaced(RUNGS, not_done(RUNGS[3], "no memory", "CUDA out of memory")) + COMPARED
    text = io.StringIO()
    report = {"facts": {}, "pieces": pieces, "passed": True, "stopped": "", "faults": [], "seconds": 1.0, "missing": {}}
    show({**report, **summarise(H100, pieces, FULL)}, Console(file=text, width=250))
    lines = text.getvalue().splitlines()
    (goal,) = (line for line in lines if line.startswith(MFU))
    assert goal.removeprefix(MFU).split() == [
        *("0.42", "0.449", "+", "recompute", "elementwise", "met"),
        *("+", "recompute", "none:", "no", "memory,", "CUDA", "out", "of", "memory"),
    ]
    (second,) = (line for line in lines if line.startswith(f"{SECOND}, vision: mfu"))
    assert "incomplete" in second
    (flash,) = (line for line in lines if line.startswith(f"{FIRST} vision, {FLASH}") and "does not" in line)
    assert flash.rstrip().endswith("not available: flash_attn_2_cuda is not installed")
