"""What each rank of a run needs: its heaviest packs run through the model without values, the rest by arithmetic.

See memory_trace.py for the one and memory.py for the other. Settings and ranks may be those of the run, or others that
are tried.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from lmms.configs.settings.train import TrainConfig
from lmms.train.batch.batch import Batch, make_batch
from lmms.train.batch.padding import pad_batch
from lmms.train.data.shards import PackReader, Place
from lmms.train.model.build import keep_in
from lmms.train.model.forward import TrainModel
from lmms.train.model.names import part_of
from lmms.train.optim.rules import bytes_by_rule
from lmms.train.parallel.world import compute_dtype
from lmms.train.plan.memory import States, copied_bytes, gathered_bytes, rank_memory, state_bytes
from lmms.train.plan.open import Opened, make_model, padded
from lmms.train.plan.trace import Moment, tensors_in, trace_pass, units


def batch_of(config: TrainConfig, opened: Opened, places: Sequence[Place]) -> Batch:
    """The batch of a pass over these packs, read now."""
    recipe = (padded(config, opened) if config.kernels.compile else opened).recipe
    reader = PackReader(opened.sets.datasets)
    batch = pad_batch(make_batch([reader.read(place) for place in places], recipe, places), recipe)
    reader.close()
    return batch


def heaviest(config: TrainConfig, opened: Opened) -> list[Batch]:
    """Real batches that bound those of the run: the packs with most tokens, with most patches, with most targets."""
    sets, micro_packs = opened.sets, config.data.micro_packs
    patches = np.concatenate([sidecar.patches for sidecar in sets.sidecars])
    columns = (sets.tokens, patches, sets.target_tokens)
    chosen: dict[tuple[int, ...], None] = {}
    for first in range(len(columns)):
        # Of packs that are equal in this column, those that are heavier in the next ones.
        keys = [columns[(first + i) % len(columns)] for i in reversed(range(len(columns)))]
        top = np.lexsort(keys)[::-1][:micro_packs].tolist()
        # A pass over fewer packs than there are could hold one of them twice.
        chosen[tuple((top * micro_packs)[:micro_packs])] = None
    return [batch_of(config, opened, [sets.place(number) for number in numbers]) for numbers in chosen]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Traced:
    """Settings that change what a pass needs, and what that is. The number of ranks is not one of them."""

    config: TrainConfig
    model: TrainModel
    passes: Callable[[bool], list[tuple[list[Moment], int]]]
    """Of each of the heaviest batches: its moments, and its own bytes; on one rank alone, or on several."""


def trace(config: TrainConfig, opened: Opened, batches: Sequence[Batch], brought: Collection[str]) -> Traced:
    """What passes over these batches need with these settings. brought: see traced_model."""
    dtype, offload = cuda_dtype(config), config.memory.offload_bytes

    @cache
    def passes(alone: bool) -> list[tuple[list[Moment], int]]:
        return [
            (
                trace_pass(traced_model(config, opened, brought), batch, dtype, offload, alone=alone),
                sum(tensor.nbytes for tensor in tensors_in(batch)),
            )
            for batch in batches
        ]

    return Traced(config=config, model=traced_model(config, opened, brought), passes=passes)


def memory_of(traced: Traced, ranks: int) -> list[dict[str, int]]:
    """Bytes of each rank by component, at its peak in the worst of the passes."""
    parallel, dtype = traced.config.parallel, cuda_dtype(traced.config)
    sharers = ranks // parallel.replicate
    alone, of_units = ranks == 1 and not parallel.offload, units(traced.model)

    def gathered(moment: Moment) -> int:
        if alone:
            return copied_bytes(of_units, dtype, parallel.reshard)
        return gathered_bytes(moment, of_units, dtype.itemsize, sharers, parallel.reshard)

    accumulates = passes_of(traced.config, ranks) > 1
    found = []
    for states in states_of(traced, ranks):
        if parallel.offload:
            states = States(weights=0, optimizer=0, gradients=0)
        of_passes = [rank_memory(states, gathered, *one, accumulates=accumulates) for one in traced.passes(alone)]
        found.append(max(of_passes, key=lambda components: sum(components.values())))
    return found


def states_of(traced: Traced, ranks: int) -> list[States]:
    """Of each rank, wherever they are kept."""
    sharers = ranks // traced.config.parallel.replicate
    parameters = list(traced.model.parameters())
    of_optimizer = bytes_by_rule(traced.config.optim.name, traced.model)
    return [state_bytes(parameters, rank % sharers, sharers, of_optimizer) for rank in range(ranks)]


def staged_bytes(traced: Traced, ranks: int, held: Collection[str]) -> int:
    """Bytes of main memory that a checkpoint takes until it is written, on the rank that needs most.

    held: the parameters that it holds.
    """
    sharers = ranks // traced.config.parallel.replicate
    parameters = [parameter for name, parameter in traced.model.named_parameters() if name in held]
    of_optimizer = bytes_by_rule(traced.config.optim.name, traced.model)
    of_ranks = (state_bytes(parameters, rank, sharers, of_optimizer) for rank in range(sharers))
    return max(one.weights + one.optimizer for one in of_ranks)


def traced_model(config: TrainConfig, opened: Opened, brought: Collection[str]) -> TrainModel:
    """A model on the meta device as the settings want it: to trace a pass spoils one.

    brought: parameters that are kept in fp32 though they may be frozen, see initial.py.
    """
    model = make_model(config, opened.folder.path)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    keep_in(model, cuda_dtype(config), {*trained, *brought})
    return model


def cuda_dtype(config: TrainConfig) -> torch.dtype:
    """The compute type of a run on GPUs."""
    return compute_dtype(config.model.precision, torch.device("cuda"))


def largest(memory: Sequence[dict[str, int]]) -> int:
    """Bytes of the rank that needs most."""
    return max(sum(components.values()) for components in memory)


def passes_of(config: TrainConfig, ranks: int) -> int:
    """Forward and backward passes of each rank in a step."""
    return -(-config.data.global_packs // (ranks // config.parallel.sequence * config.data.micro_packs))


def parameters_by_part(model: TrainModel, *, trained: bool) -> dict[str, int]:
    """Part -> its parameters, or those that are trained."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained:
            part = part_of(model, name)
            parts[part] = parts.get(part, 0) + parameter.numel()
    return parts
