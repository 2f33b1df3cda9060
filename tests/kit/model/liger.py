"""Functions of Liger in plain torch: Liger itself runs on a GPU alone."""

import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, apply_rotary_pos_emb_vision

from lmms.train.model.liger import LigerFunctions


def plain_functions(calls: list[str]) -> LigerFunctions:
    """Liger's functions by their meaning, in plain torch: its own run on a GPU alone."""

    def rms_norm(x: Tensor, w: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool) -> Tensor:
        calls.append("norm")
        assert (offset, casting_mode, in_place) == (0.0, "llama", False)
        return F.rms_norm(x, x.shape[-1:], w, eps)

    def swiglu(gate: Tensor, up: Tensor) -> Tensor:
        calls.append("gated")
        return F.silu(gate) * up

    def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        calls.append("rope")
        turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(q, k, cos, sin)
        return turned

    def rope_vision(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        calls.append("rope_vision")
        turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb_vision(q, k, cos, sin)
        return turned

    return LigerFunctions(rms_norm=rms_norm, swiglu=swiglu, rope=rope, rope_vision=rope_vision)
