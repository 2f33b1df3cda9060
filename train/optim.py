"""Which parameters are trained, by AdamW with what decay, at what learning rate."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from lmms.configs.errors import ConfigError
from lmms.configs.train import OptimConfig, Part
from lmms.train.model import part_of


def freeze(model: nn.Module, parts: Sequence[Part]) -> None:
    """Take these parts out of training. A part that the model does not have is a ConfigError: nothing is silent."""
    for part in parts:
        matched = [parameter for name, parameter in model.named_parameters() if part_of(name) == part]
        if not matched:
            found = ", ".join(sorted({part_of(name) for name, _ in model.named_parameters()}))
            raise ConfigError(f"model.freeze names {part!r}, which this model does not have; it has {found}")
        for parameter in matched:
            parameter.requires_grad_(False)


def trained_parts(model: nn.Module) -> dict[Part, list[nn.Parameter]]:
    """The trained parameters of each part; a part that is frozen or absent is not in it."""
    parts: dict[Part, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(name), []).append(parameter)
    return parts


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the trained parameters, with weight decay on those of two or more dimensions.

    The averages exist from the start and not from a parameter's first gradient: so every checkpoint holds the same
    tensors, also when no step so far has reached the vision tower.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def learning_rate(step: int, config: OptimConfig, max_steps: int) -> float:
    """The learning rate of step 1, 2, ..., max_steps.

    Warm-up rises linearly from 0 at step 0 to lr at step warmup_steps. The decay starts at lr with the next step and
    would reach the floor one step after the last, so that no step is spent at 0.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    done = (step - 1 - config.warmup_steps) / (max_steps - config.warmup_steps)
    match config.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - done
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * share)
