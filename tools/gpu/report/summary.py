"""The summary of all pieces' results: shares of ceilings, floors, faults. Arithmetic on the report only.

A floor is the least time that a class of kernels of a step can take on this card, from measurements of single kernels.
Products: every product of the model at the speed of its shape alone. Attention: every layer on the lengths of the pack,
at the speed of the fastest kernel that passed. Elementwise and the optimizer: the bytes that a perfectly fused step
moves, at the speed of a copy. Kernels that backward computes again count each time: those of a block without its last
product and the addition after it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from tools.gpu.pieces.ladder import LORA
from tools.gpu.pieces.models import Sizes, model_config
from tools.gpu.pieces.shapes import Rows, head_width
from tools.gpu.pieces.trace import marks_missing
from tools.gpu.processes import Outcome
from tools.gpu.report.goals import PACKED, goals_of, recipes

Json = Mapping[str, Any]
"""A part of the report: results as dicts, from the processes of the pieces."""
RECOMPUTED: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "elementwise": ("elementwise",),
    "full": ("gemm", "attention", "elementwise"),
}
"""Value of the setting -> the classes whose forward runs once more."""
_BF16, _FP32 = 2, 4


def report_of(head: Json, outcomes: Sequence[Outcome], sizes: Sizes | None) -> dict[str, Any]:
    """The report, for JSON. head: facts besides the pieces; sizes: None until they are known."""
    pieces = [outcome.to_json() for outcome in outcomes]
    summary: dict[str, Any] = {"trainings": [], "recipes": [], "goals": []}
    if sizes:
        summary = {"sizes": sizes, **summarise(head["facts"], pieces, sizes)}
    faults = {training["piece"] for training in summary["trainings"] if training["ours"] and not training["passed"]}
    faults |= {piece["name"] for piece in pieces if piece["ours"] and _is_fault(piece)}
    missing = {
        piece["name"]: f"{piece['outcome']}: {last_line(piece['error'])}"
        for piece in pieces
        if piece["outcome"] != "done"
    }
    verdict = {"passed": head["complete"] and not faults, "faults": sorted(faults), "missing": missing}
    return {**head, **verdict, **summary, "pieces": pieces}


def _is_fault(piece: Json) -> bool:
    results = piece["result"] if isinstance(piece["result"], list) else [piece["result"] or {}]
    return piece["outcome"] in ("failed", "too slow") or not all(result.get("passed", True) for result in results)


def last_line(error: str) -> str:
    """The last line of the output of a piece, which is the text of an error."""
    return error.strip().rpartition("\n")[2][:200]


def summarise(facts: Json, pieces: Sequence[Json], sizes: Sizes) -> dict[str, Any]:
    """{trainings: a dict of figures each, recipes: see recipes, goals: see goals_of}. A miniature has no goals."""
    results = {piece["name"]: piece["result"] for piece in pieces if piece["result"] is not None}
    trainings = [
        _figures(piece, results, facts.get("peak_flops"), sizes)
        for piece in pieces
        if piece["kind"] in ("training", "comparator") and piece["result"] is not None
    ]
    rivals = list(recipes(pieces))
    for training in trainings:
        rates = [
            rival["tokens_per_s"]
            for rival in rivals
            if rival["counted"] and (rival["model"], rival["packs"]) == (training["model"], training["packs"])
        ]
        training[PACKED] = training["tokens_per_s"] / max(rates) if rates else None
    goals = [] if sizes.thin else list(goals_of(trainings, rivals, pieces))
    return {"trainings": trainings, "recipes": rivals, "goals": goals}


def _figures(piece: Json, results: Json, peak: float | None, sizes: Sizes) -> dict[str, Any]:
    training, ours = piece["result"], piece["kind"] == "training"
    steps, trace, waits = training["steps"], training["trace"], training["waits"]
    rate, ceilings = training["flops"] / training["seconds"], results.get("ceilings")
    predicted = results.get(f"memory {training['model']} {training['packs']}", {}).get(training["name"])
    floors = _floors(training, results, sizes) if ours else None
    unmarked = marks_missing(trace, sizes.packs if ours else 0) if trace and trace["kernels"] else ""
    return {
        "piece": piece["name"],
        **{name: piece[name] for name in ("kind", "ours", "outcome")},
        **{name: training[name] for name in ("model", "packs", "name", "seconds", "tokens_per_s", "passed", "faults")},
        "mfu": rate / peak if peak else None,
        "share of the measured product": rate / ceilings["sustained_flops"] if ceilings else None,
        "data_wait": sum(steps["waited"]) / sum(steps["seconds"]),
        "spread": (max(steps["seconds"]) - min(steps["seconds"])) / training["seconds"],
        "peak_memory": steps["peak_memory"],
        "predicted_memory": sum(predicted.values()) if predicted else None,
        "recompiles": steps["recompiles"],
        "waits": sum(waits.values()) if waits is not None else None,
        "measured": trace["classes"] if trace and trace["kernels"] and not unmarked else None,
        "unmarked": unmarked,
        "idle": 1 - trace["busy"] / trace["span"] if trace and trace["span"] else None,
        "floors": floors,
        "times its floor": training["seconds"] / sum(floors.values()) if floors else None,
    }


def _floors(training: Json, results: Json, sizes: Sizes) -> dict[str, float] | None:
    """Floors of a training; None if a measurement is missing, or if only a part of the model is trained."""
    model, packs = training["model"], training["packs"]
    ceilings, products = results.get("ceilings"), results.get(f"products {model} {packs}")
    kernels = [kernel for name, result in results.items() if name.startswith("attention ") for kernel in result]
    attention = best_attention(kernels, model, packs)
    if ceilings is None or products is None or model in LORA or not attention:
        return None
    tokens, targets, patches = (training[name] // sizes.packs for name in ("tokens", "target_tokens", "patches"))
    rows, config = Rows(tokens=tokens, targets=targets, patches=patches), model_config(model, thin=sizes.thin)
    a_pass = pass_floors(config, rows, training["recompute"], products, attention, ceilings["copy"])
    floors = {kind: sizes.packs * seconds for kind, seconds in a_pass.items()}
    return {**floors, "optimizer": training["optimizer_bytes"] / ceilings["copy"], "copy": 0.0, "communication": 0.0}


def pass_floors(
    config: PretrainedConfig,
    rows: Rows,
    recompute: str,
    products: Sequence[Json],
    attention: Sequence[Json],
    copy: float,
) -> dict[str, float]:
    """KernelClass -> seconds of forward and backward over `rows`; the model is trained as a whole.

    products, attention: ProductSpeed and LayerSpeed as dicts. copy: bytes a second.
    """
    again = RECOMPUTED[recompute]
    forwards = 2 if "attention" in again else 1
    (head,) = (product for product in products if product["head"])
    # Logits in fp32 are read for the sum and for their gradient, which is written in bf16.
    logits = rows.targets * config.get_text_config().vocab_size * (2 * _FP32 + _BF16)
    return {
        "gemm": sum(
            product["layers"] * _seconds(product, "gemm" in again and product["again"])
            for product in products
            if not product["head"]
        ),
        "attention": sum(layer["count"] * (forwards * layer["forward"] + layer["backward"]) for layer in attention),
        "elementwise": elementwise_bytes(config, rows, again="elementwise" in again) / copy,
        "loss": _seconds(head, False) + logits / copy,
    }


def _seconds(product: Json, again: bool) -> float:
    once: float = product["forward"] + product["input_grad"] + product["weight_grad"]
    return once + product["forward"] if again else once


def elementwise_bytes(config: PretrainedConfig, rows: Rows, *, again: bool) -> int:
    """Bytes that blocks read and write between products and attention, in bf16, forward and backward, if norms,
    rotations, residuals and activations are fused as far as possible.

    Two norms with the addition before them (4 widths forward, 4 backward), the rotation of queries and keys (2 and 2),
    the activation: gated 3 of the inner width and 5 backward, plain 2 and 3. again: whether backward runs forward once
    more, without the last addition: 2 widths less.
    """
    text, tower = config.get_text_config(), config.vision_config
    rotated = (text.num_attention_heads + text.num_key_value_heads) * head_width(text)
    gated_tower = config.model_type == "qwen2_5_vl"
    total = 0
    for count, width, turned, inner, gated in (
        (text.num_hidden_layers * rows.tokens, text.hidden_size, rotated, text.intermediate_size, True),
        (tower.depth * rows.patches, tower.hidden_size, 2 * tower.hidden_size, tower.intermediate_size, gated_tower),
    ):
        forward = 8 * width + 2 * turned + (3 if gated else 2) * inner
        backward = 8 * width + 2 * turned + (5 if gated else 3) * inner
        total += count * (forward + backward + (forward - 2 * width if again else 0))
    return _BF16 * total


def best_attention(kernels: Sequence[Json], model: str, packs: str) -> list[Json]:
    """LayerSpeed (as dicts) of each layer, by the kernel that passed and was fastest over forward and backward.

    kernels: KernelReport as dicts.
    """
    best: dict[str, Json] = {}
    for kernel in kernels:
        if kernel["passed"] and (kernel["model"], kernel["packs"]) == (model, packs):
            for speed in kernel["speeds"]:
                best[speed["layer"]] = min(best.get(speed["layer"], speed), speed, key=_both)
    return list(best.values())


def _both(speed: Json) -> float:
    return float(speed["forward"] + speed["backward"])
