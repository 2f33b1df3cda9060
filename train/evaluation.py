"""The loss on shards that are not trained on: every pack once, the same numbers on any number of ranks.

The training does not notice: no random number is drawn, nothing is left gathered, and the loader is a separate loader.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from lmms.configs.contract.manifest import Dataset
from lmms.configs.errors import TrainError
from lmms.train.batch.loader import Loading, batches
from lmms.train.batch.recipe import Recipe, loss_by_group
from lmms.train.batch.transfer import ahead as on_device
from lmms.train.data.shards import PackReader, Request, Sidecar
from lmms.train.parallel.sharding import reshard_all
from lmms.train.parallel.world import World
from lmms.train.watch.watch import Watch


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The result of an evaluation. A loss is the sum of weighted cross entropy (natural log) per unit of target weight,
    by token: with the weights of messages and records, whatever loss_weight is."""

    loss: float
    by_source: dict[str, float]
    """Loss of each source that has targets; empty where the recipe does not tell sources apart."""
    target_weight: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EvalSet:
    """The shards that evaluations read."""

    dataset: Dataset
    sidecar: Sidecar
    recipe: Recipe
    """A recipe by token, with groups by source unless there are too many sources."""


@torch.no_grad()
def evaluate(model: nn.Module, eval_set: EvalSet, world: World, loading: Loading, watch: Watch) -> Evaluation | None:
    """The loss of a sharded model over all packs of a data set; every rank calls it and gets the same numbers.

    None as soon as any rank was asked to stop.

    Raises what reading and making batches raise, and TrainError where no target has weight.
    """
    dataset, sidecar, recipe = eval_set.dataset, eval_set.sidecar, eval_set.recipe
    planned = plan_passes(sidecar, world.data_rank, world.data_size, loading.micro_packs)
    requests = [request for request, _, _ in planned]
    sums = torch.zeros(recipe.num_groups, 2, dtype=torch.float64, device=world.device)
    loader = batches(PackReader([dataset]), recipe, requests, loading.workers, loading.stall_s)
    with closing(loader), closing(on_device(loader, world.device)) as arriving, _evaluating(model):
        for number, (request, images, sounds) in enumerate(planned, 1):
            packs = [place.pack for place in request.places]
            watch.beat(f"evaluation, pass {number} of {len(requests)}: packs {packs}")
            _, by_group = model(next(arriving), images, world.sequence_group, step_has_sounds=sounds)
            sums += by_group
            (stop,) = world.total(torch.tensor([watch.asked.stop], dtype=torch.float64, device=world.device))
            if stop:
                return None
    totals = world.total(sums.flatten())
    losses, weights = totals[::2], totals[1::2]
    if sum(weights) == 0:
        raise TrainError(f"{dataset.where}: every image failed, no target is left to evaluate on")
    return Evaluation(
        loss=sum(losses) / sum(weights),
        by_source=loss_by_group(recipe, np.array(totals).reshape(-1, 2)) if recipe.by == "source" else {},
        target_weight=sum(weights),
    )


def plan_passes(sidecar: Sidecar, rank: int, ranks: int, micro_packs: int) -> list[tuple[Request, bool, bool]]:
    """The forward passes of a rank, as many as of every rank, with whether any rank's packs hold images, or sounds.

    Packs are dealt [rank::ranks] in stored order. A rank that gets no pack of a pass runs the pass's first pack, which
    does not count.
    """
    passes = []
    for start in range(0, len(sidecar), ranks * micro_packs):
        packs = range(start, min(start + ranks * micro_packs, len(sidecar)))
        rank_packs = packs[rank::ranks]
        request = Request(tuple(map(sidecar.place, rank_packs or packs[:1])), counts=bool(rank_packs))
        here = slice(packs.start, packs.stop)
        passes.append((request, bool(sidecar.patches[here].any()), bool(sidecar.sound_tokens[here].any())))
    return passes


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module has its mode again, and what forward passes gathered is freed."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        reshard_all(model)
