"""Which parameter is updated by which rule under optim.name, and what the rule's state needs.

Muon is for matrices that map one hidden state to another: weights of linear layers in the blocks of the language model
and the vision tower. AdamW updates embeddings, head, patch embedding, mergers (a few layers where two models meet),
norms, biases and LoRA's factors (whose product changes the weight). Averages in few bits are for large matrices: in
small parameters they save nothing.
"""

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from lmms.configs.settings.optim import OptimName
from lmms.train.families import family_of
from lmms.train.model.build import blocks
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import is_lora, parameter_name, part_of
from lmms.train.optim.adamw import new_averages, update_adamw, update_small
from lmms.train.optim.eight_bit import blocks_of_row
from lmms.train.optim.muon import new_momentum, update_muon

SMALL = 4096
"""Elements of a parameter below which its averages stay in fp32."""


class Updates(torch.optim.Optimizer):
    """Updates each group by the rule in its entry `rule`. States exist from the start, see make_optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = new_state(group["rule"], parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            reached = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.state[parameter] for parameter in reached]
            if reached:
                match group["rule"]:
                    case "adamw":
                        update_adamw(reached, states, group)
                    case "muon":
                        update_muon(reached, states, group)
                    case rule:
                        update_small(rule, reached, states, group)


def new_state(rule: OptimName, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state that a rule keeps for a parameter, before the first step."""
    return new_momentum(parameter) if rule == "muon" else new_averages(rule, parameter)


def rules_of(name: OptimName, model: nn.Module) -> dict[Tensor, OptimName]:
    """The rule of each parameter under this optim.name, trained or not."""
    matrices = stacked_matrices(model) if name == "muon" else {}

    def rule(parameter: nn.Parameter) -> OptimName:
        if name == "muon":
            return "muon" if parameter in matrices else "adamw"
        return name if parameter.ndim >= 2 and parameter.numel() >= SMALL else "adamw"

    return {parameter: rule(parameter) for parameter in model.parameters()}


def stacked_matrices(model: nn.Module) -> dict[Tensor, int]:
    """The weights that Muon is for -> the number of matrices of equal size in each weight."""
    if not isinstance(model, TrainModel):
        return {}
    stacked = family_of(model.hf.config.model_type).stacked
    return {
        module.weight: stacked.get(parameter_name(name).rpartition(".")[2], 1)
        for block in blocks(model)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and not is_lora(f".{name}")
    }


def bytes_by_rule(name: OptimName, model: nn.Module) -> Callable[[Tensor, int], int]:
    """A function: (parameter, number of its local elements, in whole rows) -> bytes of their state under optim.name."""
    rules = rules_of(name, model)

    def size(parameter: Tensor, local: int) -> int:
        match rules[parameter]:
            case "adamw":
                return 2 * local * parameter.element_size() + _STEP_BYTES
            case "adamw-bf16":
                return 2 * local * torch.bfloat16.itemsize + _STEP_BYTES
            case "adamw-8bit":
                rows = local // prod(parameter.shape[1:])
                return 2 * (local + rows * blocks_of_row(parameter.shape) * torch.float32.itemsize) + _STEP_BYTES
            case "muon":
                return local * parameter.element_size()

    return size


_STEP_BYTES = 4
"""Bytes of the count of a parameter's steps, fp32."""


def muon_line(model: nn.Module) -> str:
    """A line for a person about the layers whose trained weights Muon updates; names are without layer numbers."""
    matrices = stacked_matrices(model)
    layers = dict.fromkeys(
        f"{part_of(model, name)} {name.removesuffix('.weight').rpartition('.')[2]}"
        for name, parameter in ((parameter_name(name), parameter) for name, parameter in model.named_parameters())
        if parameter in matrices and parameter.requires_grad
    )
    return f"muon takes the weights of {', '.join(layers) or 'nothing that is trained'}; adamw all others"
