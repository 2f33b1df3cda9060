"""The goals of the trainer on one H100, each held to the fastest rung that passed."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.gpu.rungs import CANDIDATES

FLOOR, PACKED = "times its floor", "times the packed recipe"
GOALS: Sequence[tuple[str, str, str, float]] = (
    ("Qwen2.5-VL-3B", "text", "mfu", 0.46),
    ("Qwen2.5-VL-3B", "vision", "mfu", 0.42),
    ("Qwen3-VL-2B", "vision", "mfu", 0.38),
    ("Qwen2.5-VL-3B", "vision", PACKED, 2.0),
    ("Qwen3-VL-2B", "vision", PACKED, 2.0),
    ("Qwen2.5-VL-3B", "vision", FLOOR, 1.15),
)
"""(model, packs, figure of the best rung, what it should be): at least, but of the floor at most."""

Dicts = Sequence[Mapping[str, Any]]


def goals_of(trainings: Dicts, compared: Dicts, pieces: Dicts) -> Iterator[dict[str, Any]]:
    """{goal, wanted, rung, found, verdict, missing} of each goal.

    trainings: the figures of summary.summarise; compared: counted.recipes; pieces: all of a report.

    verdict: met, not met, or incomplete where something is missing that could turn it: for one that is met a
    comparator, or a kernel, that was not measured and may be faster; for one that is not a rung; and where there is no
    figure. missing: all of these, with the reason of each.
    """
    for model, packs, figure, wanted in GOALS:
        best = best_rung(trainings, model, packs)
        found = best[figure] if best else None
        against = _against(figure, model, packs, compared, pieces)
        rungs = _rungs_missing(trainings, pieces, model, packs)
        if found is None or against:
            verdict = "incomplete"
        elif found <= wanted if figure == FLOOR else found >= wanted:
            verdict = "met"
        else:
            verdict = "incomplete" if rungs else "not met"
        yield {
            "goal": f"{model}, {packs}: {figure}",
            "wanted": wanted,
            "rung": best["name"] if best else None,
            "found": found,
            "verdict": verdict,
            "missing": [*against, *rungs],
        }


def best_rung(trainings: Dicts, model: str, packs: str) -> Mapping[str, Any] | None:
    """The fastest training of ours that passed and came to its end."""
    passed = [
        one
        for one in trainings
        if one["kind"] == "training" and (one["model"], one["packs"]) == (model, packs)
        if one["passed"] and one["outcome"] == "done"
    ]
    return max(passed, key=lambda one: float(one["tokens_per_s"]), default=None)


def _rungs_missing(trainings: Dicts, pieces: Dicts, model: str, packs: str) -> list[str]:
    found = {one["name"]: one for one in trainings if (one["model"], one["packs"]) == (model, packs)}
    begun = {
        piece["settings"]["rung"]: piece
        for piece in pieces
        if piece["kind"] == "training" and [piece["settings"][key] for key in ("model", "packs")] == [model, packs]
    }
    missing = []
    for rung in CANDIDATES:
        if rung not in begun:
            missing.append(f"{rung}: not asked for")
        elif begun[rung]["outcome"] != "done":
            missing.append(f"{rung}: {_reason(begun[rung])}")
        elif not found[rung]["passed"]:
            missing.append(f"{rung}: {found[rung]['faults'][0]}")
    return missing


def _against(figure: str, model: str, packs: str, compared: Dicts, pieces: Dicts) -> list[str]:
    """What a figure is held against and was not measured, though this machine could."""
    if figure == PACKED:
        here = [one for one in compared if (one["model"], one["packs"]) == (model, packs) and not one["absent"]]
        missing = [f"{one['name']}: {one['why']}" for one in here if one["why"]]
        return missing if here else ["no comparator with Liger can be had on this machine"]
    if figure == FLOOR:
        needed = [piece for piece in pieces if piece["kind"] in ("ceilings", "attention")]
        needed += [piece for piece in pieces if piece["name"] == f"products {model} {packs}"]
        # flex compiles for each shape, and comes last of all.
        return [
            f"{piece['name']}: {_reason(piece)}"
            for piece in needed
            if piece["outcome"] not in ("done", "not available") and piece["name"] != "attention flex"
        ]
    return []


def _reason(piece: Mapping[str, Any]) -> str:
    return f"{piece['outcome']}, {piece['error'].strip().rpartition(chr(10))[2][:120]}".rstrip(", ")
