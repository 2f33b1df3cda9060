"""The least time that each class of kernels of a step can take on this card, from what was measured alone.

Products: every product of the model at the speed that its own shapes reach alone. Attention: every layer on the pack's
own lengths at the speed of the fastest kernel that passed. Elementwise and the optimizer: the bytes that a perfectly
fused step moves, at the speed of a copy. What is computed again in backward counts as often as it runs: of a block all
but its last product and the addition after it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from tools.gpu.shapes import Rows

RECOMPUTED: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "elementwise": ("elementwise",),
    "full": ("gemm", "attention", "elementwise"),
}
"""Value of the setting -> the classes whose forward runs once more."""
_BF16, _FP32 = 2, 4


def floor_seconds(
    config: PretrainedConfig,
    rows: Rows,
    recompute: str,
    products: Sequence[Mapping[str, Any]],
    attention: Sequence[Mapping[str, Any]],
    copy: float,
    optimizer_bytes: int,
    passes: int,
) -> dict[str, float]:
    """KernelClass -> seconds of a step of so many passes, each of `rows`; the model is trained as a whole.

    products, attention: ProductSpeed and LayerSpeed as dicts. copy: bytes a second.
    """
    again = RECOMPUTED[recompute]
    gemm = sum(one["layers"] * _seconds(one, "gemm" in again and one["again"]) for one in products if not one["head"])
    (head,) = (one for one in products if one["head"])
    forwards = 2 if "attention" in again else 1
    attending = sum(one["count"] * (forwards * one["forward"] + one["backward"]) for one in attention)
    logits = head_bytes(rows.targets, config.get_text_config().vocab_size) / copy
    return {
        "gemm": passes * gemm,
        "attention": passes * attending,
        "elementwise": passes * elementwise_bytes(config, rows, again="elementwise" in again) / copy,
        "loss": passes * (_seconds(head, False) + logits),
        "optimizer": optimizer_bytes / copy,
        "copy": 0.0,
        "communication": 0.0,
    }


def _seconds(product: Mapping[str, Any], again: bool) -> float:
    once: float = product["forward"] + product["input_grad"] + product["weight_grad"]
    return once + product["forward"] if again else once


def head_bytes(targets: int, vocab: int) -> int:
    """Of a loss beside its products: fp32 logits read for the sum and for the gradient, which is written in bf16."""
    return targets * vocab * (2 * _FP32 + _BF16)


def elementwise_bytes(config: PretrainedConfig, rows: Rows, *, again: bool) -> int:
    """Read and written between products and attention by blocks whose norms, rotations, residuals and activations are
    fused as far as they can be, in bf16, forward and backward.

    Two norms with the addition before them (4 widths forward, 4 backward), the rotation of queries and keys (2 and 2),
    the activation: gated 3 of the inner width and 5 backward, plain 2 and 3. again: whether backward runs forward once
    more, but for the last addition, which it does not need: 2 widths less.
    """
    text, tower = config.get_text_config(), config.vision_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    rotated = (text.num_attention_heads + text.num_key_value_heads) * head
    blocks = (
        (text.num_hidden_layers * rows.tokens, text.hidden_size, rotated, text.intermediate_size, True),
        (
            *(tower.depth * rows.patches, tower.hidden_size, 2 * tower.hidden_size, tower.intermediate_size),
            config.model_type == "qwen2_5_vl",
        ),
    )
    total = 0
    for count, width, turned, inner, gated in blocks:
        forward = 8 * width + 2 * turned + (3 if gated else 2) * inner
        backward = 8 * width + 2 * turned + (5 if gated else 3) * inner
        total += count * (forward + backward + (forward - 2 * width if again else 0))
    return _BF16 * total


def best_attention(found: Sequence[Mapping[str, Any]], model: str, packs: str) -> list[Mapping[str, Any]]:
    """LayerSpeed (as dicts) of each layer by the kernel that was fastest over forward and backward, of those that
    passed. found: KernelFound as dicts."""
    best: dict[str, Mapping[str, Any]] = {}
    for kernel in found:
        if kernel["passed"] and (kernel["model"], kernel["packs"]) == (model, packs):
            for speed in kernel["speeds"]:
                known = best.get(speed["layer"])
                if known is None or _both(speed) < _both(known):
                    best[speed["layer"]] = speed
    return list(best.values())


def _both(speed: Mapping[str, Any]) -> float:
    return float(speed["forward"] + speed["backward"])
