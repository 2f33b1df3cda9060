"""Pieces of a report as JSON has them, with figures that are easy to reckon with."""

from typing import Any

from tools.gpu.pieces.models import FULL
from tools.gpu.pieces.trace import CLASSES


def piece(name: str, result: Any = None, outcome: str = "done", error: str = "") -> dict[str, Any]:
    place = {"name": name, "kind": name.partition(" ")[0], "settings": {}, "ours": True}
    return {**place, "outcome": outcome, "error": error, "result": result}


def training(name: str, model: str, packs: str, seconds: float, **changed: Any) -> dict[str, Any]:
    """A rung that took so many seconds a step. changed: outcome, error, faults or steps."""
    faults = changed.pop("faults", [])
    steps = {
        "seconds": [seconds, seconds],
        "waited": [0.1, 0.1],
        "peak_memory": 50 * 10**9,
        "recompiles": 0,
        "losses": [12.0, 11.0],
        "grad_norms": [3.0, 2.9],
        **changed.pop("steps", {}),
    }
    classes = {**dict.fromkeys(CLASSES, 0.0), "gemm": 0.5}
    marks = {"loss": 4 * FULL.packs, "optimizer": 2}
    result = {
        "model": model,
        "packs": packs,
        "name": name,
        "seconds": seconds,
        "tokens_per_s": 32768 / seconds,
        "flops": 4e14,
        "passed": not faults,
        "faults": faults,
        "steps": steps,
        "recompute": "full",
        "trace": {"classes": classes, "busy": 0.9, "span": 1.0, "kernels": 3, "marks": marks},
        "waits": {"train/step.py:1": 1},
        "optimizer_bytes": 10**9,
        "tokens": 32768,
        "target_tokens": 8000,
        "patches": 0,
    }
    settings = {"model": model, "packs": packs, "rung": name}
    return {**piece(f"training {model} {packs} {name}", result, **changed), "settings": settings}


def comparator(name: str, model: str, packs: str, seconds: float, **changed: Any) -> dict[str, Any]:
    rival = training(name, model, packs, seconds, **changed)
    rival["result"]["trace"]["marks"]["loss"] = 0
    settings = {"model": model, "packs": packs, "name": name}
    return {**rival, "name": f"comparator {model} {name}", "kind": "comparator", "settings": settings, "ours": False}


def not_done(piece: dict[str, Any], outcome: str, error: str) -> dict[str, Any]:
    """The same piece, of which nothing came."""
    return {**piece, "outcome": outcome, "error": error, "result": None}


def replaced(pieces: list[dict[str, Any]], piece: dict[str, Any]) -> list[dict[str, Any]]:
    """The pieces with this one in the place of the one with its name."""
    return [piece if other["name"] == piece["name"] else other for other in pieces]
