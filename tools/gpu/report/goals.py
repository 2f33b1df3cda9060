"""The goals of the trainer on one H100, and whether the fastest rung that passed meets them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.gpu.pieces.ladder import CANDIDATES
from tools.gpu.pieces.models import FIRST, SECOND
from tools.gpu.rivals.comparator import COMPARATORS, RECIPE

FLOOR, PACKED = "times its floor", "times the packed recipe"
GOALS: Sequence[tuple[str, str, str, float]] = (
    (FIRST, "text", "mfu", 0.46),
    (FIRST, "vision", "mfu", 0.42),
    (SECOND, "vision", "mfu", 0.38),
    (FIRST, "vision", PACKED, 2.0),
    (SECOND, "vision", PACKED, 2.0),
    (FIRST, "vision", FLOOR, 1.15),
)
"""(model, packs, figure of the best rung, wanted value): the least value, but for FLOOR the most."""
LOSS_WITHIN, NORM_WITHIN = 5e-3, 5e-2
"""Largest relative differences of a comparator's first loss and gradient norm from the trainer's; bf16 rounds by 2e-3.
All begin with the same weights and packs."""

Dicts = Sequence[Mapping[str, Any]]


def goals_of(trainings: Dicts, rivals: Dicts, pieces: Dicts) -> Iterator[dict[str, Any]]:
    """{goal, wanted, rung, found, verdict, missing} of each goal.

    trainings: the figures of summarise; rivals: the result of recipes; pieces: all pieces of a report.

    verdict: met, not met, or incomplete. A goal is incomplete without a figure, or if a missing result could change
    the verdict: for met, a comparator or kernel that may be faster; for not met, a rung. missing: these results, each
    with its reason.
    """
    for model, packs, figure, wanted in GOALS:
        best = best_rung(trainings, model, packs)
        value = best[figure] if best else None
        against = _against(figure, model, packs, rivals, pieces)
        rungs = list(_rungs_missing(trainings, pieces, model, packs))
        if value is None or against:
            verdict = "incomplete"
        elif value <= wanted if figure == FLOOR else value >= wanted:
            verdict = "met"
        else:
            verdict = "incomplete" if rungs else "not met"
        goal = {"goal": f"{model}, {packs}: {figure}", "wanted": wanted, "rung": best["name"] if best else None}
        yield {**goal, "found": value, "verdict": verdict, "missing": [*against, *rungs]}


def best_rung(trainings: Dicts, model: str, packs: str) -> Mapping[str, Any] | None:
    """The fastest training of lmms that passed and ended as planned."""
    passed = [
        training
        for training in trainings
        if training["kind"] == "training" and (training["model"], training["packs"]) == (model, packs)
        if training["passed"] and training["outcome"] == "done"
    ]
    return max(passed, key=lambda training: float(training["tokens_per_s"]), default=None)


def _rungs_missing(trainings: Dicts, pieces: Dicts, model: str, packs: str) -> Iterator[str]:
    figures = {training["piece"]: training for training in trainings}
    begun = {piece["name"]: piece for piece in pieces}
    for rung in CANDIDATES:
        name = f"training {model} {packs} {rung}"
        if name not in begun:
            yield f"{rung}: not asked for"
        elif begun[name]["outcome"] != "done":
            yield f"{rung}: {_reason(begun[name], ', ')}"
        elif not figures[name]["passed"]:
            yield f"{rung}: {figures[name]['faults'][0]}"


def _against(figure: str, model: str, packs: str, rivals: Dicts, pieces: Dicts) -> list[str]:
    """Results for the comparison of a figure that this machine could measure and did not."""
    if figure == PACKED:
        here = [rival for rival in rivals if (rival["model"], rival["packs"]) == (model, packs) and not rival["absent"]]
        missing = [f"{rival['name']}: {rival['why']}" for rival in here if rival["why"]]
        return missing if here else ["no comparator with Liger can be had on this machine"]
    if figure == FLOOR:
        return [
            f"{piece['name']}: {_reason(piece, ', ')}"
            for piece in pieces
            if piece["kind"] in ("ceilings", "attention") or piece["name"] == f"products {model} {packs}"
            if piece["outcome"] not in ("done", "not available")
        ]
    return []


def recipes(pieces: Dicts) -> Iterator[dict[str, Any]]:
    """{model, packs, name, tokens_per_s, counted, why, absent} of each comparator among a report's pieces.

    counted: whether the comparator is the packed recipe, ran to its end and computed what the trainer computes; if not,
    `why`. absent: whether the comparison is complete without the comparator, since its recipe differs or this machine
    cannot run it.
    """
    for piece in (piece for piece in pieces if piece["kind"] == "comparator"):
        settings, result = piece["settings"], piece["result"]
        place = {name: settings[name] for name in ("model", "packs", "name")}
        why = _why_not(piece, _first_step(pieces, f"training {settings['model']} {settings['packs']} "))
        absent = settings["name"] not in RECIPE or piece["outcome"] == "not available"
        rate = result["tokens_per_s"] if result else None
        yield {**place, "tokens_per_s": rate, "counted": not why, "why": why, "absent": absent}


def _why_not(piece: Mapping[str, Any], ours: tuple[float, float] | None) -> str:
    recipe, result = COMPARATORS[piece["settings"]["name"]], piece["result"]
    if not recipe.packed:
        return "it pads"
    if not recipe.liger:
        return "without Liger it is another recipe"
    if piece["outcome"] != "done":
        return _reason(piece, ": ")
    if not result["passed"]:
        return str(result["faults"][0])
    if ours is None:
        return "no training of ours passed, to compare its numbers with"
    theirs = (result["steps"]["losses"][0], result["steps"]["grad_norms"][0])
    for name, a, b, within in zip(("loss", "gradient norm"), theirs, ours, (LOSS_WITHIN, NORM_WITHIN), strict=True):
        if not abs(a - b) <= within * abs(b):
            return f"its first {name} is {a:.5g}, ours {b:.5g}"
    return ""


def _first_step(pieces: Dicts, training: str) -> tuple[float, float] | None:
    """Loss and gradient norm of the first step of a training of lmms; its piece's name begins with `training`."""
    for piece in pieces:
        if piece["name"].startswith(training) and piece["outcome"] == "done" and piece["result"]["passed"]:
            steps = piece["result"]["steps"]
            return steps["losses"][0], steps["grad_norms"][0]
    return None


def _reason(piece: Mapping[str, Any], between: str) -> str:
    return f"{piece['outcome']}{between}{piece['error'].strip().rpartition(chr(10))[2][:120]}".rstrip(between)
