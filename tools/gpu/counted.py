"""Which comparators "the packed recipe" is: those that ran, and computed what the trainer computes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.gpu.recipes import COMPARATORS, RECIPE

LOSS_WITHIN, NORM_WITHIN = 5e-3, 5e-2
"""Relative, of the first step's loss and gradient norm from the trainer's; bf16 rounds by 2e-3. All begin with the same
weights and packs."""


def recipes(pieces: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """{model, packs, name, tokens_per_s, counted, why} of each comparator among a report's pieces.

    counted: whether it is held against the trainer; if not, `why`. absent: whether the comparison is complete without
    it: this machine cannot run it, it is another recipe, or it took all of its time where the same one with its patches
    as a product is counted.
    """
    whys = {piece["name"]: _why_not(piece, _first_step(pieces, piece["settings"])) for piece in _comparators(pieces)}
    for piece in _comparators(pieces):
        settings, result, why = piece["settings"], piece["result"], whys[piece["name"]]
        place = {"model": settings["model"], "packs": settings["packs"]}
        faster = whys.get(f"{piece['name']}, linear patches", "not there") == ""
        yield {
            **place,
            "name": settings["name"],
            "tokens_per_s": result["tokens_per_s"] if result else None,
            "counted": not why,
            "why": why,
            "absent": settings["name"] not in RECIPE
            or piece["outcome"] == "not available"
            or (piece["outcome"] == "too slow" and faster),
        }


def _comparators(pieces: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [piece for piece in pieces if piece["kind"] == "comparator"]


def _why_not(piece: Mapping[str, Any], ours: tuple[float, float] | None) -> str:
    recipe, result = COMPARATORS[piece["settings"]["name"]], piece["result"]
    if not recipe.packed:
        return "it pads"
    if not recipe.liger:
        return "without Liger it only stands in for the recipe"
    if piece["outcome"] != "done":
        return f"{piece['outcome']}: {piece['error'].strip().rpartition(chr(10))[2][:120]}"
    if not result["passed"]:
        return str(result["faults"][0])
    if ours is None:
        return "no training of ours passed, to compare its numbers with"
    found = (result["steps"]["losses"][0], result["steps"]["grad_norms"][0])
    for name, a, b, within in zip(("loss", "gradient norm"), found, ours, (LOSS_WITHIN, NORM_WITHIN), strict=True):
        if not abs(a - b) <= within * abs(b):
            return f"its first {name} is {a:.5g}, ours {b:.5g}"
    return ""


def _first_step(pieces: Sequence[Mapping[str, Any]], place: Mapping[str, Any]) -> tuple[float, float] | None:
    """Loss and gradient norm of the first step of a training of ours on the same packs."""
    for piece in pieces:
        same = piece["kind"] == "training" and all(piece["settings"][key] == place[key] for key in ("model", "packs"))
        if same and piece["outcome"] == "done" and piece["result"]["passed"]:
            steps = piece["result"]["steps"]
            return steps["losses"][0], steps["grad_norms"][0]
    return None
