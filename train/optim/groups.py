"""Which parameters are trained, by what rule with what decay, at what learning rate."""

from collections.abc import Mapping
from itertools import groupby

import torch
from torch import nn

from lmms.configs.by_part import Part, check_matches, setting_of
from lmms.configs.errors import ConfigError
from lmms.configs.settings.lora import DEFAULT_LORA, LoraConfig
from lmms.configs.settings.optim import OptimConfig, OptimName
from lmms.configs.settings.train import How
from lmms.configs.stores.store import setting_text
from lmms.train.model.lora import trained_names
from lmms.train.model.names import is_lora, parameter_name, part_of
from lmms.train.optim.rules import SMALL, Updates, rules_of, stacked_matrices


def set_trained(model: nn.Module, train: Mapping[str, How], lora: LoraConfig = DEFAULT_LORA) -> None:
    """Take the frozen parameters out of training.

    ConfigError for a part that the model does not have, for a pattern without a match, and if nothing is trained.
    """
    trained = trained_names(model, train, lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_lora(name) or parameter_name(name) in trained)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"train is {setting_text(dict(train))}: nothing of this model would be trained")


def trained_parts(model: nn.Module) -> dict[Part, list[nn.Parameter]]:
    """The trained parameters of each part, without parts that are frozen or absent."""
    parts: dict[Part, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts.setdefault(part_of(model, name), []).append(parameter)
    return parts


def check_optim(model: nn.Module, config: OptimConfig) -> None:
    """Raise ConfigError for learning rates that match nothing of the model, and for an optimizer with nothing to do."""
    check_matches(
        "optim.lr", config.lr, {parameter_name(name): part_of(model, name) for name, _ in model.named_parameters()}
    )
    rules = rules_of(config.name, model)
    if not any(rules[parameter] == config.name for parameter in model.parameters() if parameter.requires_grad):
        meant = "weight of a linear layer in the blocks" if config.name == "muon" else f"matrix of {SMALL:,} elements"
        raise ConfigError(
            f"optim.name is {config.name}, but no {meant} is trained, and adamw would update everything; set optim.name"
            " to adamw, or train more"
        )


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer over the trained parameters, with weight decay on parameters of two or more dimensions.

    A group has a peak learning rate, which is its entry `peak`, a decay, and a rule, see rules_of. States exist from
    the start and not from a parameter's first gradient: so every checkpoint holds the same tensors, even when no step
    has reached the vision tower yet. ConfigError: see check_optim.
    """
    check_optim(model, config)
    names = {parameter_name(name): parameter for name, parameter in model.named_parameters()}
    trained = {name: parameter for name, parameter in names.items() if parameter.requires_grad}
    rules = rules_of(config.name, model)
    stacked = stacked_matrices(model) if config.name == "muon" else {}

    def group_of(name: str) -> tuple[float, float, OptimName, int]:
        parameter = trained[name]
        decay = config.weight_decay if parameter.ndim >= 2 else 0.0
        return setting_of(config.lr, part_of(model, name), name), decay, rules[parameter], stacked.get(parameter, 1)

    groups = [
        {
            "params": [trained[name] for name in members],
            "lr": peak,
            "peak": peak,
            "weight_decay": decay,
            "betas": config.betas,
            "eps": config.eps,
            "momentum": config.momentum,
            "rule": rule,
            "stacked": number,
        }
        for (peak, decay, rule, number), members in groupby(sorted(trained, key=group_of), group_of)
    ]
    return Updates(groups)
