"""What the pieces' results come to together: shares of ceilings, floors, goals. Arithmetic on the report alone."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tools.gpu.floors import best_attention, floor_seconds
from tools.gpu.models import model_config
from tools.gpu.rungs import BEST, OF_MODEL
from tools.gpu.shapes import Rows
from tools.gpu.sizes import Sizes

GOALS: Sequence[tuple[str, str, str, float]] = (
    ("Qwen2.5-VL-3B", "text", "mfu", 0.46),
    ("Qwen2.5-VL-3B", "vision", "mfu", 0.42),
    ("Qwen3-VL-2B", "vision", "mfu", 0.38),
    ("Qwen2.5-VL-3B", "vision", "times the packed recipe", 2.0),
    ("Qwen3-VL-2B", "vision", "times the packed recipe", 2.0),
    ("Qwen2.5-VL-3B", "vision", "times its floor", 1.15),
)
"""(model, packs, figure of the best rung, what it should be): at least, but of the last at most."""
PACKED = "packed"
"""Comparators whose names begin so are the packed recipe; the fastest of them counts."""


def summarise(report: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """{trainings: a dict of figures each, goals: {goal, wanted, found, met} each} of a report's pieces.

    A miniature has no goals.
    """
    found = {piece["name"]: piece["result"] for piece in report["pieces"] if piece["result"] is not None}
    ceilings, peak = found.get("ceilings"), (report["facts"] or {}).get("peak_flops")
    trainings = [
        _figures(piece, found, ceilings, peak, sizes)
        for piece in report["pieces"]
        if piece["kind"] in ("training", "comparator") and piece["result"] is not None
    ]
    for one in trainings:
        theirs = [
            other["tokens_per_s"]
            for other in trainings
            if other["kind"] == "comparator"
            and other["name"].startswith(PACKED)
            and (other["model"], other["packs"]) == (one["model"], one["packs"])
        ]
        one["times the packed recipe"] = one["tokens_per_s"] / max(theirs) if theirs else None
    return {"trainings": trainings, "goals": [] if sizes.thin else list(_goals(trainings))}


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
    return {
        "kind": piece["kind"],
        **{name: one[name] for name in ("model", "packs", "name", "seconds", "tokens_per_s", "passed", "faults")},
        "mfu": rate / peak if peak else None,
        "share of the measured product": rate / ceilings["sustained_flops"] if ceilings else None,
        "data_wait": sum(steps["waited"]) / sum(steps["seconds"]),
        "spread": (max(steps["seconds"]) - min(steps["seconds"])) / one["seconds"],
        "peak_memory": steps["peak_memory"],
        "predicted_memory": sum(predicted.values()) if predicted else None,
        "recompiles": steps["recompiles"],
        "waits": sum(one["waits"].values()) if one["waits"] is not None else None,
        "measured": trace["classes"] if trace and trace["kernels"] else None,
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


def _goals(trainings: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for model, packs, figure, wanted in GOALS:
        found = next(
            (
                one[figure]
                for one in trainings
                if one["kind"] == "training" and (one["model"], one["packs"], one["name"]) == (model, packs, BEST)
            ),
            None,
        )
        met = None if found is None else found <= wanted if figure == "times its floor" else found >= wanted
        yield {"goal": f"{model}, {packs}: {figure}", "wanted": wanted, "found": found, "met": met}
