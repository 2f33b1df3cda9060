"""Liger's fused norms, gated MLPs and rotations in the modules of one model: for blocks that are not compiled.

Liger patches transformers' classes, and with them every other model of the process. Here each module of one model gets
a new forward, made of Liger's public functions. Liger's loss is not used: see linear_cross_entropy.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

from lmms.configs.errors import ModelError

_ROTATIONS = {"apply_rotary_pos_emb": "rope", "apply_rotary_pos_emb_vision": "rope_vision"}
"""A function that transformers' attention calls -> the field of LigerFunctions that takes its place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LigerFunctions:
    """The functions of Liger that are used here."""

    rms_norm: Callable[..., Tensor]
    """(x, weight, eps, offset, casting mode, in place)"""
    swiglu: Callable[[Tensor, Tensor], Tensor]
    """silu(gate) * up"""
    rope: Callable[..., tuple[Tensor, Tensor]]
    """(queries, keys [1, heads, T, D], cos, sin [1, T, D])"""
    rope_vision: Callable[..., tuple[Tensor, Tensor]]
    """(queries, keys [patches, heads, D], cos, sin [patches, D])"""


def liger_functions() -> LigerFunctions:
    """The functions of the installed package."""
    from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu
    from liger_kernel.transformers.rope import liger_rotary_pos_emb, liger_rotary_pos_emb_vision

    return LigerFunctions(
        rms_norm=liger_rms_norm, swiglu=liger_swiglu, rope=liger_rotary_pos_emb, rope_vision=liger_rotary_pos_emb_vision
    )


def use_liger(model: nn.Module, functions: LigerFunctions, *, keeps_products: bool = False) -> None:
    """Let a model's norms, gated MLPs and attention call these. ModelError where the model has none of a kind.

    keeps_products: backward reads the results of linear layers again (memory.recompute: elementwise). Liger rotates in
    place, and without norms in between that would overwrite the results of the query's and key's layers.
    """
    if keeps_products:
        functions = replace(functions, rope=partial(_rotated_copies, functions.rope))
    norms, gated, rotated = 0, 0, 0
    modules: list[Any] = list(model.modules())
    for module in modules:
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_rms_norm, functions, module)
            norms += 1
        elif isinstance(getattr(module, "act_fn", None), type(ACT2FN["silu"])) and hasattr(module, "gate_proj"):
            module.forward = partial(_gated, functions, module)
            gated += 1
        elif names := _ROTATIONS.keys() & set(type(module).forward.__code__.co_names):
            module.forward = _with_globals(module, {name: getattr(functions, _ROTATIONS[name]) for name in names})
            rotated += 1
    if not (norms and gated and rotated):
        raise ModelError(
            f"Liger found {norms} norms, {gated} gated MLPs and {rotated} attentions to take over, expected some of"
            " each: this transformers is built otherwise; set kernels.liger: off"
        )


def _rms_norm(functions: LigerFunctions, module: Any, hidden: Tensor) -> Tensor:
    # Not in place: that would overwrite a gradient that another module shares.
    return functions.rms_norm(hidden, module.weight, module.variance_epsilon, 0.0, "llama", False)


def _gated(functions: LigerFunctions, module: Any, hidden: Tensor) -> Tensor:
    output: Tensor = module.down_proj(functions.swiglu(module.gate_proj(hidden), module.up_proj(hidden)))
    return output


def _rotated_copies(
    rope: Callable[..., tuple[Tensor, Tensor]], query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    return rope(query.clone(), key.clone(), cos, sin)


def _with_globals(module: nn.Module, names: dict[str, Any]) -> MethodType:
    """A module's forward that finds other functions under these names, which it looks up in transformers' file."""
    plain: Any = type(module).forward
    changed = FunctionType(
        plain.__code__, {**plain.__globals__, **names}, plain.__name__, plain.__defaults__, plain.__closure__
    )
    changed.__kwdefaults__ = plain.__kwdefaults__
    return MethodType(changed, module)
