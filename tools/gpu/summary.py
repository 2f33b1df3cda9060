"""What the pieces' results come to together: shares of ceilings, floors, goals. Arithmetic on the report alone."""

from collections.abc import Mapping
from typing import Any

from tools.gpu.counted import recipes
from tools.gpu.floors import best_attention, floor_seconds
from tools.gpu.goals import PACKED, goals_of
from tools.gpu.models import model_config
from tools.gpu.rungs import OF_MODEL
from tools.gpu.shapes import Rows
from tools.gpu.sizes import Sizes
from tools.gpu.traces import marks_missing


def summarise(report: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """{trainings: a dict of figures each, recipes: see counted.py, goals: see goals.py} of a report's pieces.

    A miniature has no goals.
    """
    pieces = report["pieces"]
    found = {piece["name"]: piece["result"] for piece in pieces if piece["result"] is not None}
    ceilings, peak = found.get("ceilings"), (report["facts"] or {}).get("peak_flops")
    trainings = [
        _figures(piece, found, ceilings, peak, sizes)
        for piece in pieces
        if piece["kind"] in ("training", "comparator") and piece["result"] is not None
    ]
    compared = list(recipes(pieces))
    for one in trainings:
        theirs = [
            other["tokens_per_s"]
            for other in compared
            if other["counted"] and (other["model"], other["packs"]) == (one["model"], one["packs"])
        ]
        one[PACKED] = one["tokens_per_s"] / max(theirs) if theirs else None
    goals = [] if sizes.thin else list(goals_of(trainings, compared, pieces))
    return {"trainings": trainings, "recipes": compared, "goals": goals}


def _figures(
    piece: Mapping[str, Any],
    found: Mapping[str, Any],
    ceilings: Mapping[str, Any] | None,
    peak: float | None,
    sizes: Sizes,
) -> dict[str, Any]:
    one = piece["result"]
    rate, steps, trace = one["flops"] / one["seconds"], one["steps"], one["trace"]
    predicted = found.get(f"memory {one['model']} {one['packs']}", {}).get(one["name"])
    floors = _floors(one, found, ceilings, sizes) if piece["kind"] == "training" else None
    wrong = marks_missing(trace, sizes.packs if piece["kind"] == "training" else 0) if trace else ""
    return {
        "piece": piece["name"],
        **{name: piece[name] for name in ("kind", "ours", "outcome")},
        **{name: one[name] for name in ("model", "packs", "name", "seconds", "tokens_per_s", "passed", "faults")},
        "mfu": rate / peak if peak else None,
        "share of the measured product": rate / ceilings["sustained_flops"] if ceilings else None,
        "data_wait": sum(steps["waited"]) / sum(steps["seconds"]),
        "spread": (max(steps["seconds"]) - min(steps["seconds"])) / one["seconds"],
        "peak_memory": steps["peak_memory"],
        "predicted_memory": sum(predicted.values()) if predicted else None,
        "recompiles": steps["recompiles"],
        "waits": sum(one["waits"].values()) if one["waits"] is not None else None,
        "measured": trace["classes"] if trace and trace["kernels"] and not wrong else None,
        "unmarked": wrong if trace and trace["kernels"] else "",
        "idle": 1 - trace["busy"] / trace["span"] if trace and trace["span"] else None,
        "floors": floors,
        "times its floor": one["seconds"] / sum(floors.values()) if floors else None,
    }


def _floors(
    one: Mapping[str, Any], found: Mapping[str, Any], ceilings: Mapping[str, Any] | None, sizes: Sizes
) -> dict[str, float] | None:
    """None where what they are made of was not measured, or the model is not trained as a whole."""
    products = found.get(f"products {one['model']} {one['packs']}")
    if ceilings is None or products is None or one["model"] in OF_MODEL:
        return None
    kernels = [kernel for name, result in found.items() if name.startswith("attention ") for kernel in result]
    attention = best_attention(kernels, one["model"], one["packs"])
    if not attention:
        return None
    return floor_seconds(
        model_config(one["model"], thin=sizes.thin),
        Rows(
            **{name: one[name] // sizes.packs for name in ("tokens", "patches")},
            targets=one["target_tokens"] // sizes.packs,
        ),
        one["recompute"],
        products,
        attention,
        ceilings["copy"],
        one["optimizer_bytes"],
        sizes.packs,
    )
