"""A transformers model that takes a Batch and returns its summed loss, whole and by group.

The model is that of transformers, built on the meta device: it gets memory when its parameters are sharded. Only what
would wait for the device is replaced: its forward (masks, positions and places of images come with the batch), its
head (see linear_cross_entropy) and the convolution over patches, which is a matrix product.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from typing import Any, cast

import torch
import transformers
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PretrainedConfig, PreTrainedModel

from lmms.configs.errors import ModelError
from lmms.configs.settings.memory import Recompute
from lmms.train.families import family_of
from lmms.train.model.attention import ATTENTION_NAME
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import is_lora
from lmms.train.model.recompute import recompute_blocks


def build_model(
    hf_config: PretrainedConfig, recompute: Recompute, recompute_vision: Recompute | None = None
) -> TrainModel:
    """A model of this config on the meta device. Next: shard it, then `materialize`.

    recompute: what backward computes again of each block, see MemoryConfig; recompute_vision: the same for blocks of
    the vision tower, where they differ.
    Raises ModelError for a config with attention windows in the language model or with dropout.
    """
    _check_config(hf_config)
    config = copy.deepcopy(hf_config)
    family = family_of(config.model_type)
    auto = getattr(transformers, family.auto_class)
    with torch.device("meta"):
        hf = auto.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for module in hf.modules():
        if isinstance(module, PreTrainedModel):
            module.config._attn_implementation = ATTENTION_NAME
    for replace_in in family.replacements:
        replace_in(hf)
    for part, block in family.blocks(hf):
        recompute_blocks([block], recompute if part == "llm" else recompute_vision or recompute)
    return TrainModel(hf).train()


def keep_in(model: TrainModel, dtype: torch.dtype, masters: Collection[str]) -> None:
    """Keep all parameters but `masters`, names in TrainModel, in the type that is computed with; before sharding.

    These parameters are frozen: nothing is added to them that would need more digits.
    """
    for name, parameter in model.named_parameters():
        if name not in masters:
            parameter.data = parameter.data.to(dtype)


def materialize(model: TrainModel, device: torch.device, offload: bool = False) -> None:
    """Give a model from the meta device memory, sharded or not. Parameters are garbage until they are read or drawn.

    offload: parameters get main memory; buffers that of the device in any case.
    """
    model.to_empty(device="cpu" if offload else device)
    if offload:
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
    if model.tied:
        # to_empty gives the two names two tensors.
        model.hf.lm_head.weight = model.hf.get_input_embeddings().weight
    reset_buffers(model)


def reset_buffers(model: nn.Module) -> None:
    """Set what no checkpoint holds, such as rotary frequencies, to the values of a new model."""
    for module in model.modules():
        if module._non_persistent_buffers_set:
            with torch.device("cpu"):
                fresh = _fresh(module)
            for name in module._non_persistent_buffers_set:
                module.get_buffer(name).copy_(fresh.get_buffer(name))


def _fresh(module: Any) -> nn.Module:
    """A new module of the same kind and sizes."""
    if hasattr(module, "config"):
        return cast(nn.Module, type(module)(module.config))
    # Positions of sounds.
    return cast(nn.Module, type(module)(module.length, module.channels, module.max_timescale))


@torch.no_grad()
def init_random(model: TrainModel, seed: int) -> None:
    """Draw every parameter by transformers' rule: the same numbers for a seed, however the model is sharded.

    Each rank draws each module whole and keeps its shard: on a CPU mesh, ranks that drew only their shards would all
    draw the same numbers.
    """
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for owner, module in _owned_modules(model.hf, model.hf):
            draw(module, owner._init_weights)


@torch.no_grad()
def draw(module: nn.Module, rule: Callable[[nn.Module], object]) -> None:
    """Initialise a module's parameters, not its children's: whole tensors are drawn, then each rank keeps its shard."""
    kept = dict(module.named_parameters(recurse=False))
    # In fp32, whatever type is kept: numbers that are drawn in bf16 would differ.
    whole = {name: nn.Parameter(torch.empty(p.shape, dtype=torch.float32, device=p.device)) for name, p in kept.items()}
    module._parameters.update(whole)
    rule(module)
    module._parameters.update(kept)
    for name, parameter in kept.items():
        drawn = whole[name].data
        if isinstance(parameter, DTensor):
            drawn = distribute_tensor(drawn, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(drawn)


def blocks(model: TrainModel) -> list[nn.Module]:
    """The repeated blocks in forward order: those of the vision tower, if any, then those of the language model."""
    return [block for _, block in family_of(model.hf.config.model_type).blocks(model.hf)]


def _owned_modules(owner: PreTrainedModel, module: nn.Module) -> Iterator[tuple[PreTrainedModel, nn.Module]]:
    """Every module below but LoRA's, children first, each with the transformers model whose rule initialises it."""
    for name, child in module.named_children():
        if is_lora(f".{name}"):
            continue
        yield from _owned_modules(child if isinstance(child, PreTrainedModel) else owner, child)
    yield owner, module


def _check_config(config: PretrainedConfig) -> None:
    text = config.get_text_config()
    if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
        raise ModelError("config.json has use_sliding_window: training with attention windows is not supported")
    for part in (text, getattr(config, "audio_config", None)):
        for name in ("attention_dropout", "dropout", "activation_dropout", "encoder_layerdrop"):
            if value := getattr(part, name, 0):
                raise ModelError(f"config.json has {name} {value}; set it to 0 for training")
