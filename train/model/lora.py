"""LoRA through PEFT: which layers get LoRA, and its first values. trained_names has what else is trained.

PEFT makes the layers (W x + alpha / rank * B A x, with A and B next to the frozen W) and names them. Every choice is
made here, by names and before anything is built, so that an error can name what was meant.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from lmms.configs.by_part import check_matches, setting_of
from lmms.configs.contract.hashing import key64
from lmms.configs.errors import ConfigError, nearest
from lmms.configs.settings.lora import ALL_LINEAR, LoraConfig
from lmms.configs.settings.train import How
from lmms.train.model.build import draw
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import fixed_names, is_lora, own_parameters, parameter_name, part_of

if TYPE_CHECKING:
    import peft

ADAPTER = "default"
"""PEFT's name of the only adapter of a model."""

_HEAD = "lm_head"


def lora_layers(model: nn.Module, train: Mapping[str, How], lora: LoraConfig) -> list[str]:
    """The linear layers that get LoRA, in the model's order, by their names in the transformers model.

    Chosen are layers whose weight `train` sets to lora and that lora.targets or lora.target_regex name, without what
    modules_to_save trains in full. ConfigError for a name or pattern that gives no layer.
    """
    if "lora" not in train.values():
        return []
    linear, others = _modules(model)
    asked = [name for name in linear if setting_of(train, part_of(model, name), f"{name}.weight") == "lora"]
    saved = _saved_modules(model, lora)
    matches = _target_test(linear, others, asked, lora)
    chosen = [name for name in asked if name not in saved and matches(name)]
    if refused := [name for name in chosen if name == _HEAD]:
        raise ConfigError(
            f"lora: {refused[0]} cannot have LoRA, since the loss reads its weight alone; train it in full:"
            f" lora.modules_to_save: [{_HEAD}]"
        )
    named = {f"{name}.weight": part_of(model, name) for name in chosen}
    decided_by = {setting_of({key: key for key in train}, part, name) for name, part in named.items()}
    for key, how in train.items():
        if how == "lora" and key not in decided_by and _decides(model, train, key):
            raise ConfigError(
                f"train: {key} is lora, but no linear layer of it is in {_wanted(lora)} or outside modules_to_save"
            )
    return chosen


def trained_names(model: nn.Module, train: Mapping[str, How], lora: LoraConfig) -> set[str]:
    """The trained parameters without those of LoRA, by their names in the transformers model.

    Trained are parameters that `train` sets to full. Where `train` sets lora, those in modules_to_save and the biases
    that lora.bias asks for are trained too. ConfigError for a pattern or module that matches nothing, or that is both
    frozen and to save.
    """
    parameters = own_parameters(model)
    check_matches("train", train, {name: part_of(model, name) for name in set(parameters.values())})
    how = {name: setting_of(train, part_of(model, name), name) for name in parameters.values()}
    saved = _saved_modules(model, lora)
    in_saved = {first for name, first in parameters.items() if name.rpartition(".")[0] in saved}
    for name in sorted(in_saved):
        if how[name] == "frozen":
            raise ConfigError(f"lora.modules_to_save names {name}, which train freezes; set train to full for it")
    biases: set[str] = set()
    if lora.bias != "none":
        layers = lora_layers(model, train, lora)
        biases = {
            name
            for name in how
            if name.endswith(".bias") and (lora.bias == "all" or name.removesuffix(".bias") in layers)
        }
    with_lora = in_saved | biases
    trained = {name for name, way in how.items() if way == "full" or (way == "lora" and name in with_lora)}
    return trained - fixed_names(model)


def add_lora(model: TrainModel, train: Mapping[str, How], lora: LoraConfig) -> None:
    """Put LoRA around the layers of lora_layers; on the meta device, before sharding. Next: `init_lora`.

    ConfigError where PEFT is not installed.
    """
    layers = lora_layers(model, train, lora)
    if not layers:
        return
    try:
        import peft
    except ImportError:
        raise ConfigError("train sets lora, which needs PEFT: pip install 'lmms[lora]', or pip install peft") from None
    with torch.device("meta"):
        peft.inject_adapter_in_model(peft_config(layers, lora), model.hf, ADAPTER)


def peft_config(layers: Iterable[str], lora: LoraConfig) -> "peft.LoraConfig":
    """PEFT's settings for these layers."""
    import peft

    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias=lora.bias,
        target_modules=list(layers),
        task_type="CAUSAL_LM",
    )


def init_lora(model: nn.Module, seed: int) -> None:
    """Start LoRA as PEFT does, A uniform and B 0: the same numbers for a seed, however the model is sharded."""
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        # Other numbers than the random weights of the same seed.
        torch.manual_seed(key64("lora", seed))
        for name, module in model.named_modules():
            if name.endswith(f".lora_A.{ADAPTER}"):
                draw(module, _uniform)
            elif name.endswith(f".lora_B.{ADAPTER}"):
                draw(module, lambda pair: nn.init.zeros_(pair.get_parameter("weight")))


def merge_lora(model: TrainModel) -> None:
    """Add what LoRA learnt to the frozen weights, and take its layers away: the model is as it was before add_lora."""
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "base_layer"):
            layer.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.base_layer)


def _uniform(module: nn.Module) -> torch.Tensor:
    """Draw uniformly within the bounds of nn.Linear, 1 / sqrt(inputs)."""
    return nn.init.kaiming_uniform_(module.get_parameter("weight"), a=math.sqrt(5))


def _modules(model: nn.Module) -> tuple[list[str], list[str]]:
    """(linear layers, all other modules) by their names in the transformers model."""
    linear: dict[str, None] = {}
    others: dict[str, None] = {}
    for name, module in model.named_modules():
        if name and not is_lora(name):
            (linear if isinstance(module, nn.Linear) else others)[parameter_name(name)] = None
    return list(linear), [name for name in others if name not in linear]


def _saved_modules(model: nn.Module, lora: LoraConfig) -> set[str]:
    """The modules that modules_to_save names, and all below them."""
    names = [name for group in _modules(model) for name in group]
    saved: set[str] = set()
    for wanted in lora.modules_to_save:
        tops = [name for name in names if _ends(name, wanted)]
        if not tops:
            raise ConfigError(f"lora.modules_to_save: no module is named {wanted!r}{nearest(wanted, _words(names))}")
        saved |= {name for name in names for top in tops if f"{name}.".startswith(f"{top}.")}
    return saved


def _target_test(linear: list[str], others: list[str], asked: list[str], lora: LoraConfig) -> Callable[[str], bool]:
    """A test whether a layer's name is a target. ConfigError for a target that is no layer that LoRA is asked for."""
    if lora.target_regex is not None:
        pattern = re.compile(lora.target_regex)
        if not any(map(pattern.search, asked)):
            words = nearest(lora.target_regex, _words(asked))
            raise ConfigError(f"lora.target_regex {lora.target_regex!r} is in no name of a linear layer{words}")
        return lambda name: pattern.search(name) is not None
    for target in lora.targets:
        if target == ALL_LINEAR or any(_ends(name, target) for name in asked):
            continue
        if any(_ends(name, target) for name in linear):
            raise ConfigError(f"lora.targets names {target!r}, but train sets no layer of that name to lora")
        if any(_ends(name, target) for name in others):
            raise ConfigError(
                f"lora.targets names {target!r}, which is no linear layer; lora.modules_to_save trains it in full"
            )
        raise ConfigError(f"lora.targets: no linear layer is named {target!r}{nearest(target, _words(asked))}")
    return lambda name: any(name != _HEAD if target == ALL_LINEAR else _ends(name, target) for target in lora.targets)


def _decides(model: nn.Module, train: Mapping[str, How], key: str) -> bool:
    """Whether a key of `train` decides how any parameter is trained."""
    keys = {name: name for name in train}
    return any(setting_of(keys, part_of(model, name), name) == key for name in own_parameters(model).values())


def _wanted(lora: LoraConfig) -> str:
    return f"lora.target_regex {lora.target_regex!r}" if lora.target_regex else f"lora.targets {list(lora.targets)}"


def _ends(name: str, wanted: str) -> bool:
    """Whether the last parts of a dotted name are these."""
    return f".{name}".endswith(f".{wanted}")


def _words(names: Iterable[str]) -> set[str]:
    return {word for name in names for word in name.split(".") if not word.isdigit()}
