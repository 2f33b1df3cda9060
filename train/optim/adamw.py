"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on this rank's shards, with averages in fp32, bf16 or 8 bits.

With averages in fp32 this is torch's fused AdamW. Else averages are read into fp32, the update is that of fp32, and the
averages are written back, some rows at a time. Nothing here depends on how a weight is cut into shards.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from lmms.configs.settings.optim import OptimName
from lmms.train.optim.eight_bit import blocks_of_row, dequantize, quantize, rounded
from lmms.train.parallel.sharding import local_of

_AT_ONCE = 2**24
"""Elements in fp32 at a time: there are about eight temporary tensors."""


def new_averages(rule: OptimName, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state of a parameter before its first step, sharded like it; `step` counts the steps that had a gradient."""
    values = parameter.detach()
    if rule == "adamw":
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": step, "exp_avg": torch.zeros_like(values), "exp_avg_sq": torch.zeros_like(values)}
    # `step` is in main memory, where it can be read without waiting.
    state = {"step": torch.zeros((), dtype=torch.float32)}
    for name in ("exp_avg", "exp_avg_sq"):
        if rule == "adamw-bf16":
            state[name] = torch.zeros_like(values, dtype=torch.bfloat16)
        else:
            of_blocks = values.flatten(1)[:, : blocks_of_row(parameter.shape)]
            state[f"{name}_codes"] = torch.zeros_like(values, dtype=torch.uint8)
            state[f"{name}_scales"] = torch.zeros_like(of_blocks, memory_format=torch.contiguous_format)
    return state


def update_adamw(parameters: Sequence[nn.Parameter], states: Sequence[dict[str, Tensor]], group: Any) -> None:
    """One step with averages in fp32."""
    adamw(
        [local_of(parameter.detach()) for parameter in parameters],
        [local_of(parameter.grad) for parameter in parameters if parameter.grad is not None],
        [local_of(state["exp_avg"]) for state in states],
        [local_of(state["exp_avg_sq"]) for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows of a parameter's shard, with the same rows of its gradient and of its state."""

    weight: Tensor
    gradient: Tensor
    state: Mapping[str, Tensor]
    step: int
    """Steps of the parameter, this step included."""


def update_small(
    rule: OptimName, parameters: Sequence[nn.Parameter], states: Sequence[dict[str, Tensor]], group: Any
) -> None:
    """One step with averages in bf16 or 8 bits, the formula of torch.optim.AdamW in fp32."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    for batch in _batches(parameters, states):
        weights, gradients = [rows.weight for rows in batch], [rows.gradient for rows in batch]
        firsts, seconds = (
            list(averages) for averages in zip(*(_read(rule, rows.state) for rows in batch), strict=True)
        )
        torch._foreach_lerp_(firsts, gradients, 1 - beta1)
        torch._foreach_mul_(seconds, beta2)
        torch._foreach_addcmul_(seconds, gradients, gradients, 1 - beta2)
        floors = torch._foreach_sqrt(seconds)
        torch._foreach_div_(floors, [math.sqrt(1 - beta2**rows.step) for rows in batch])
        torch._foreach_add_(floors, group["eps"])
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(weights, firsts, floors, [-lr / (1 - beta1**rows.step) for rows in batch])
        for rows, first, second in zip(batch, firsts, seconds, strict=True):
            _write(rule, rows, first, second)


def _batches(parameters: Sequence[nn.Parameter], states: Sequence[dict[str, Tensor]]) -> Iterator[list[_Rows]]:
    """All that this rank has of these parameters, about _AT_ONCE elements at a time."""
    batch, batch_elements = list[_Rows](), 0
    for parameter, state in zip(parameters, states, strict=True):
        state["step"] += 1
        for rows in _cut(parameter, state):
            if batch and batch_elements + rows.weight.numel() > _AT_ONCE:
                yield batch
                batch, batch_elements = [], 0
            batch.append(rows)
            batch_elements += rows.weight.numel()
    if batch:
        yield batch


def _cut(parameter: nn.Parameter, state: Mapping[str, Tensor]) -> Iterator[_Rows]:
    weight, gradient = local_of(parameter.detach()), local_of(parameter.grad)  # type: ignore[arg-type]
    step = int(state["step"])
    averages = {name: local_of(value) for name, value in state.items() if name != "step"}
    each = max(_AT_ONCE * len(weight) // max(weight.numel(), 1), 1)
    for start in range(0, len(weight), each):
        rows = slice(start, start + each)
        yield _Rows(weight[rows], gradient[rows], {name: value[rows] for name, value in averages.items()}, step)


def _read(rule: OptimName, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Both averages in fp32: that of the gradients, and that of their squares."""
    if rule == "adamw-bf16":
        return state["exp_avg"].float(), state["exp_avg_sq"].float()
    first = dequantize(state["exp_avg_codes"], state["exp_avg_scales"], signed=True)
    root = dequantize(state["exp_avg_sq_codes"], state["exp_avg_sq_scales"], signed=False)
    return first, root.square_()


def _write(rule: OptimName, rows: _Rows, first: Tensor, second: Tensor) -> None:
    """Write both averages back. The 8-bit codes of the squares' average are those of its root.

    So these codes reach as far down as those of the gradients. Codes of the average itself end at 3e-7 of a block's
    largest value: a gradient below 6e-4 of the largest gradient would be divided by eps alone.
    """
    if rule == "adamw-bf16":
        rows.state["exp_avg"].copy_(rounded(first, rows.step))
        rows.state["exp_avg_sq"].copy_(rounded(second, rows.step))
        return
    for name, values, signed in (("exp_avg", first, True), ("exp_avg_sq", second.sqrt_(), False)):
        codes, scales = quantize(values, signed, rows.step)
        rows.state[f"{name}_codes"].copy_(codes)
        rows.state[f"{name}_scales"].copy_(scales)
