"""Goals are held to the fastest rung that passed, and to nothing that was not measured."""

import io
from typing import Any

import pytest
from rich.console import Console

from tests.tools.gpu.reports import comparator, not_done, piece, training
from tools.gpu.goals import GOALS
from tools.gpu.rungs import CANDIDATES, LEAST
from tools.gpu.schedule import FIRST, SECOND
from tools.gpu.show import show
from tools.gpu.sizes import FULL, MINI
from tools.gpu.summary import summarise

MFU, TIMES, FLOOR = (
    f"{FIRST}, vision: mfu",
    f"{FIRST}, vision: times the packed recipe",
    f"{FIRST}, vision: times its floor",
)
CONV, LINEAR = "packed, varlen, liger", "packed, varlen, liger, linear patches"
FLASH = "packed, flash-attn-2, liger"
# 4e14 operations at 989e12 a second, 42 % of it: 0.963 s
RUNGS = [
    training(rung, FIRST, "vision", seconds) for rung, seconds in zip(CANDIDATES, (1.1, 1.2, 0.9, 1.0), strict=True)
]
COMPARED = [
    comparator(CONV, FIRST, "vision", 4.0),
    comparator(LINEAR, FIRST, "vision", 2.0),
    not_done(comparator(FLASH, FIRST, "vision", 1.0), "not available", "flash_attn_2_cuda is not installed"),
]


def goals(pieces: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    report = {"facts": {"peak_flops": 989e12}, "pieces": pieces}
    return {one["goal"]: one for one in summarise(report, FULL)["goals"]}


def replaced(pieces: list[dict[str, Any]], one: dict[str, Any]) -> list[dict[str, Any]]:
    return [one if other["name"] == one["name"] else other for other in pieces]


def test_the_fastest_rung_that_passed_counts_and_is_named() -> None:
    found = goals(RUNGS + COMPARED)
    assert found[MFU]["rung"] == "+ recompute elementwise"
    assert found[MFU]["found"] == pytest.approx(4e14 / 0.9 / 989e12)
    assert (found[MFU]["verdict"], found[MFU]["missing"]) == ("met", [])
    assert found[TIMES]["found"] == pytest.approx(2.0 / 0.9)
    assert found[TIMES]["verdict"] == "met"
    assert set(found) == {f"{model}, {packs}: {figure}" for model, packs, figure, _ in GOALS}
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
    fast = not_done(RUNGS[2], outcome, error)
    slow = replaced(replaced(RUNGS, fast), training(CANDIDATES[3], FIRST, "vision", 1.05))
    found = goals(slow)[MFU]
    assert found["verdict"] == "incomplete"
    assert found["rung"] == "+ recompute none"
    assert found["missing"] == [f"+ recompute elementwise: {outcome}, {error}"]
    whole = replaced(slow, training(CANDIDATES[2], FIRST, "vision", 1.3))
    assert goals(whole)[MFU]["verdict"] == "not met"
    met = goals(replaced(slow, training(LEAST, FIRST, "vision", 0.5)))[MFU]
    assert (met["verdict"], met["rung"]) == ("met", LEAST)
    assert met["missing"] == [f"+ recompute elementwise: {outcome}, {error}"]


def test_nothing_measured_is_incomplete_and_says_what_was_not() -> None:
    found = goals([not_done(RUNGS[0], "no memory", "CUDA out of memory")])[MFU]
    assert (found["verdict"], found["found"], found["rung"]) == ("incomplete", None, None)
    assert found["missing"] == [
        f"{LEAST}: no memory, CUDA out of memory",
        *(f"{rung}: not asked for" for rung in CANDIDATES[1:]),
    ]
    assert goals([])[f"{SECOND}, vision: mfu"]["verdict"] == "incomplete"
    assert summarise({"facts": {}, "pieces": RUNGS}, MINI)["goals"] == []


def test_the_packed_recipe_is_held_against_only_when_all_of_it_that_can_run_has_run() -> None:
    without = goals(RUNGS + [not_done(one, "not available", "no Liger") for one in COMPARED])[TIMES]
    assert (without["verdict"], without["found"]) == ("incomplete", None)
    assert without["missing"] == ["no comparator with Liger can be had on this machine"]
    conv_alone = goals(RUNGS + replaced(COMPARED, not_done(COMPARED[1], "not run", "3 s were left")))[TIMES]
    # Four times as fast as a convolution that may be slow says nothing.
    assert conv_alone["found"] == pytest.approx(4.0 / 0.9)
    assert conv_alone["verdict"] == "incomplete"
    assert conv_alone["missing"] == [f"{LINEAR}: not run: 3 s were left"]
    slow = goals(RUNGS + replaced(COMPARED, not_done(COMPARED[0], "too slow", "not done after 60 s")))[TIMES]
    assert (slow["verdict"], slow["missing"]) == ("met", [])
    faster = goals(RUNGS + replaced(COMPARED, comparator(LINEAR, FIRST, "vision", 1.5)))[TIMES]
    assert faster["verdict"] == "not met"


def test_a_floor_without_a_kernel_that_could_be_faster_is_none() -> None:
    product = {"layers": 1, "again": True, "forward": 0.06, "input_grad": 0.06, "weight_grad": 0.06}
    products = [{**product, "shape": "head", "head": True}, {**product, "shape": "body", "head": False}]
    speed = {"layer": "language", "count": 1, "forward": 0.05, "backward": 0.1}
    kernel = {"model": FIRST, "packs": "vision", "passed": True, "speeds": [speed]}
    cards = [
        piece("ceilings", "ceilings", {"sustained_flops": 700e12, "copy": 2.5e12}),
        piece(f"products {FIRST} vision", "products", products),
        piece("attention varlen", "attention", [kernel]),
        piece("attention flash-attn-3", "attention", outcome="not available", error="no package"),
        piece("attention flex", "attention", outcome="not run", error="3 s were left"),
    ]
    assert goals(RUNGS + cards)[FLOOR]["verdict"] == "met"
    cudnn = piece("attention cudnn", "attention", outcome="too slow", error="not done after 60 s")
    found = goals(RUNGS + cards + [cudnn])[FLOOR]
    assert found["verdict"] == "incomplete"
    assert found["missing"] == ["attention cudnn: too slow, not done after 60 s"]


def test_the_table_says_which_rung_and_what_is_missing() -> None:
    pieces = replaced(RUNGS, not_done(RUNGS[3], "no memory", "CUDA out of memory")) + COMPARED
    screen = Console(file=io.StringIO(), width=250)
    report = {"facts": {}, "pieces": pieces, "passed": True, "stopped": "", "faults": [], "seconds": 1.0}
    show({**report, **summarise({"facts": {"peak_flops": 989e12}, "pieces": pieces}, FULL)}, screen)
    assert isinstance(screen.file, io.StringIO)
    lines = screen.file.getvalue().splitlines()
    (goal,) = (line for line in lines if line.startswith(MFU))
    assert goal.removeprefix(MFU).split() == [
        *("0.42", "0.449", "+", "recompute", "elementwise", "met"),
        *("+", "recompute", "none:", "no", "memory,", "CUDA", "out", "of", "memory"),
    ]
    (second,) = (line for line in lines if line.startswith(f"{SECOND}, vision: mfu"))
    assert "incomplete" in second
    (flash,) = (line for line in lines if line.startswith(f"{FIRST} vision, {FLASH}") and "does not" in line)
    assert flash.rstrip().endswith("not available: flash_attn_2_cuda is not installed")
