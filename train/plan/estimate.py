"""The memory that each rank of a run needs: the heaviest packs run through the model without values (trace_pass), and
the rest is arithmetic (rank_memory). Settings and ranks may be those of the run, or others that are tried."""

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
from lmms.train.plan.trace import Peak, tensors_in, trace_pass, units


def batch_of(config: TrainConfig, opened: Opened, places: Sequence[Place]) -> Batch:
    """The batch of a pass over these packs, which are read now."""
    recipe = (padded(config, opened) if config.kernels.compile else opened).recipe
    reader = PackReader(opened.sets.datasets)
    batch = pad_batch(make_batch([reader.read(place) for place in places], recipe, places), recipe)
    reader.close()
    return batch


def heaviest(config: TrainConfig, opened: Opened) -> list[Batch]:
    """Real batches at the upper bound of a run: the packs with most tokens, most patches, most targets, most sounds."""
    sets, micro_packs = opened.sets, config.data.micro_packs
    patches, sounds = (
        np.concatenate([getattr(sidecar, name) for sidecar in sets.sidecars]) for name in ("patches", "sound_positions")
    )
    columns = (sets.tokens, patches, sets.target_tokens, *([sounds] if sounds.any() else []))
    chosen: dict[tuple[int, ...], None] = {}
    for first in range(len(columns)):
        # Packs that are equal in this column are sorted by the next columns.
        keys = [columns[(first + i) % len(columns)] for i in reversed(range(len(columns)))]
        top = np.lexsort(keys)[::-1][:micro_packs].tolist()
        # With fewer packs than a pass takes, the pass holds some packs twice.
        chosen[tuple((top * micro_packs)[:micro_packs])] = None
    return [batch_of(config, opened, [sets.place(number) for number in numbers]) for numbers in chosen]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Traced:
    """Settings, and the memory of their heaviest passes. The number of ranks does not change it."""

    config: TrainConfig
    opened: Opened
    batches: Sequence[Batch]
    overlaid: Collection[str]
    """See traced_model."""
    model: TrainModel
    passes: Callable[[bool], list[tuple[list[Peak], int]]]
    """A call with alone (one rank, or several): for each of the heaviest batches, its moments and its bytes."""


def trace(config: TrainConfig, opened: Opened, batches: Sequence[Batch], overlaid: Collection[str]) -> Traced:
    """The memory of passes over these batches with these settings. overlaid: see traced_model."""
    dtype, offload = cuda_dtype(config), config.memory.offload_bytes

    @cache
    def passes(alone: bool) -> list[tuple[list[Peak], int]]:
        return [
            (
                trace_pass(traced_model(config, opened, overlaid), batch, dtype, offload, alone=alone),
                sum(tensor.nbytes for tensor in tensors_in(batch)),
            )
            for batch in batches
        ]

    model = traced_model(config, opened, overlaid)
    return Traced(config=config, opened=opened, batches=batches, overlaid=overlaid, model=model, passes=passes)


def memory_of(traced: Traced, ranks: int) -> list[dict[str, int]]:
    """Bytes of each rank by component, at its peak in the worst of the passes."""
    parallel, dtype = traced.config.parallel, cuda_dtype(traced.config)
    sharers = ranks // parallel.replicate
    alone, of_units = ranks == 1 and not parallel.offload, units(traced.model)

    def gathered(moment: Peak) -> int:
        if alone:
            return copied_bytes(of_units, dtype, parallel.reshard)
        return gathered_bytes(moment, of_units, dtype.itemsize, sharers, parallel.reshard)

    accumulates = passes_of(traced.config, ranks) > 1
    ranks_memory = []
    for states in states_of(traced, ranks):
        if parallel.offload:
            states = States(weights=0, optimizer=0, gradients=0)
        of_passes = [
            rank_memory(states, gathered, *one_pass, accumulates=accumulates) for one_pass in traced.passes(alone)
        ]
        ranks_memory.append(max(of_passes, key=lambda components: sum(components.values())))
    return ranks_memory


def states_of(traced: Traced, ranks: int) -> list[States]:
    """The states of each rank, in GPU memory or main memory."""
    sharers = ranks // traced.config.parallel.replicate
    parameters = list(traced.model.parameters())
    of_optimizer = bytes_by_rule(traced.config.optim.name, traced.model)
    return [state_bytes(parameters, rank % sharers, sharers, of_optimizer) for rank in range(ranks)]


def staged_bytes(traced: Traced, ranks: int, checkpointed: Collection[str]) -> int:
    """Bytes of main memory that a checkpoint takes until it is written, on the rank that needs most.

    checkpointed: the parameters that the checkpoint holds.
    """
    sharers = ranks // traced.config.parallel.replicate
    parameters = [parameter for name, parameter in traced.model.named_parameters() if name in checkpointed]
    of_optimizer = bytes_by_rule(traced.config.optim.name, traced.model)
    of_ranks = (state_bytes(parameters, rank, sharers, of_optimizer) for rank in range(sharers))
    return max(states.weights + states.optimizer for states in of_ranks)


def traced_model(config: TrainConfig, opened: Opened, overlaid: Collection[str]) -> TrainModel:
    """A new model on the meta device with these settings: a model can be traced a single time.

    overlaid: parameters that are kept in fp32 though they may be frozen, see Overlay.
    """
    model = make_model(config, opened.folder.path)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    keep_in(model, cuda_dtype(config), {*trained, *overlaid})
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
    """Part -> the number of its parameters, or of its trained parameters."""
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trained:
            part = part_of(model, name)
            parts[part] = parts.get(part, 0) + parameter.numel()
    return parts
