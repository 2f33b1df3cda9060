"""What the pieces come to together: shares of ceilings, floors, times the packed recipe; which comparators count."""

from copy import deepcopy
from typing import Any

import pytest

from tests.tools.gpu.reports import comparator, not_done, piece, training
from tools.gpu.rungs import LEAST
from tools.gpu.schedule import FIRST
from tools.gpu.sizes import FULL
from tools.gpu.summary import summarise

LIGER, LINEAR = "packed, varlen, liger", "packed, varlen, liger, linear patches"
STAND_IN = "packed, varlen, chunked loss, linear patches"
PIECES = [
    piece("ceilings", "ceilings", {"sustained_flops": 700e12, "copy": 2.5e12}),
    piece(f"memory {FIRST} vision", "memory", {LEAST: {"weights": 40, "llm": 2}}),
    training(LEAST, FIRST, "vision", 1.0),
    training(LEAST, FIRST, "text", 0.8),
    comparator(LIGER, FIRST, "vision", 2.6),
    comparator(LINEAR, FIRST, "vision", 2.2),
    comparator(STAND_IN, FIRST, "vision", 2.1),
    comparator("padded, sdpa", FIRST, "vision", 2.0),
    piece("loss whole", "loss", outcome="not run", error="3 s were left"),
]


def summary_of(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    return summarise({"facts": {"peak_flops": 989e12}, "pieces": pieces}, FULL)


def test_a_training_is_held_against_the_card_and_the_packed_recipe() -> None:
    best, text, *_ = summary_of(PIECES)["trainings"]
    assert best["mfu"] == pytest.approx(4e14 / 989e12)
    assert best["share of the measured product"] == pytest.approx(4e14 / 700e12)
    assert best["predicted_memory"] == 42
    assert best["data_wait"] == pytest.approx(0.1)
    assert best["idle"] == pytest.approx(0.1)
    assert best["waits"] == 1
    assert best["measured"]["gemm"] == 0.5
    assert best["floors"] is None
    # The faster of the two that are the recipe, not the stand-in and not what pads.
    assert best["times the packed recipe"] == pytest.approx(2.2)
    assert text["times the packed recipe"] is None


def why_not(pieces: list[dict[str, Any]], name: str) -> str:
    (one,) = (one for one in summary_of(pieces)["recipes"] if one["name"] == name)
    assert one["counted"] == (not one["why"])
    return str(one["why"])


def test_a_comparator_that_does_not_count_says_why() -> None:
    assert why_not(PIECES, LINEAR) == why_not(PIECES, LIGER) == ""
    assert why_not(PIECES, STAND_IN) == "without Liger it only stands in for the recipe"
    assert why_not(PIECES, "padded, sdpa") == "it pads"

    def with_linear(one: dict[str, Any]) -> list[dict[str, Any]]:
        return [one if other["settings"].get("name") == LINEAR else other for other in PIECES]

    plain = comparator(LINEAR, FIRST, "vision", 2.2)
    missing = with_linear(not_done(plain, "not available", "Traceback\nLiger is not installed"))
    assert why_not(missing, LINEAR) == "not available: Liger is not installed"
    assert summary_of(missing)["trainings"][0]["times the packed recipe"] == pytest.approx(2.6)
    fault = "the loss did not fall: 12.0000, then 12.1000"
    for changed, why in (
        ({"faults": [fault]}, fault),
        ({"steps": {"losses": [12.1, 11.0]}}, "its first loss is 12.1, ours 12"),
        ({"steps": {"grad_norms": [2.5, 2.0]}}, "its first gradient norm is 2.5, ours 3"),
        ({"steps": {"grad_norms": [float("nan"), 2.0]}}, "its first gradient norm is nan, ours 3"),
        ({"outcome": "failed", "error": "CUDA error"}, "failed: CUDA error"),
    ):
        pieces = with_linear(comparator(LINEAR, FIRST, "vision", 2.2, **changed))
        assert why_not(pieces, LINEAR) == why
        assert summary_of(pieces)["trainings"][0]["times the packed recipe"] == pytest.approx(2.6)
    alone = [one for one in PIECES if one["kind"] != "training"]
    assert why_not(alone, LINEAR) == "no training of ours passed, to compare its numbers with"


def test_classes_are_not_shown_where_marks_are_missing() -> None:
    pieces = deepcopy(PIECES)
    pieces[2]["result"]["trace"]["marks"]["loss"] = 6
    best, *_ = summary_of(pieces)["trainings"]
    assert best["measured"] is None
    assert best["unmarked"].startswith("marks {'loss': 6, 'optimizer': 2}, expected")


def test_floors_come_from_the_products_and_kernels_of_the_same_packs() -> None:
    product = {"layers": 2, "again": True, "forward": 1e-3, "input_grad": 1e-3, "weight_grad": 1e-3}
    products = [{**product, "shape": "head", "head": True}, {**product, "shape": "body", "head": False}]
    speed = {"layer": "language", "count": 2, "forward": 1e-3, "backward": 2e-3}
    kernel = {"model": FIRST, "packs": "vision", "passed": True, "speeds": [speed]}
    more = [
        piece(f"products {FIRST} vision", "products", products),
        piece("attention varlen", "attention", [kernel]),
    ]
    best, text, *_ = summary_of(PIECES + more)["trainings"]
    assert best["floors"]["gemm"] == pytest.approx(2 * 2 * 4e-3)
    assert best["floors"]["attention"] == pytest.approx(2 * 2 * 4e-3)
    assert best["times its floor"] == pytest.approx(1.0 / sum(best["floors"].values()))
    assert text["floors"] is None
