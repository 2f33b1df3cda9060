"""One optimizer step: forward and backward over its passes, norms, clipping, update.

The loss of a step is the sum of weighted cross entropies over its targets, divided by their total weight, which the
sidecar knows before anything is read. So a step is the same sum for any number of ranks and passes.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from lmms.configs.by_part import PARTS, Part
from lmms.configs.contract.hashing import key64
from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch
from lmms.train.data.steps import StepPlan, pack_names
from lmms.train.parallel.sharding import reshard_all
from lmms.train.parallel.world import World
from lmms.train.watch.marks import Mark, unmarked
from lmms.train.watch.signals import Asked


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every global generator of this process: Python's, numpy's old one, torch's on the CPU and on each GPU."""
    key = key64("step", seed, step, rank)
    random.seed(key)
    np.random.seed([key % 2**32, key >> 32])
    torch.manual_seed(key)


T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What came of a step, over all ranks."""

    loss: float
    grad_norm: float
    part_norms: dict[Part, float]
    """Of each trained part."""
    waited: float
    """Seconds without data, averaged over the ranks."""
    masked: list[str]
    """A sentence for each conversation that was trained with weight 0 since an image failed."""
    fault: str
    """What was not finite, with the packs, where the update was therefore left out; else empty."""
    digest: int
    """Of the packs that were read and trained, by all ranks: see sets.packs_digest."""
    groups: npt.NDArray[np.float64]
    """[groups, 2]: sum of weighted cross entropy and sum of weights of each of the batches' groups."""
    stop: bool
    """Whether any rank was told to stop before the step ended, see signals.py."""
    save: bool
    """Whether any was told to write a checkpoint."""


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[Part, Sequence[nn.Parameter]],
    plan: StepPlan,
    batches: Iterator[Batch],
    world: World,
    lr_share: float,
    max_grad_norm: float,
    asked: Asked,
    beat: Callable[[str], None],
    mark: Mark = unmarked,
) -> StepResult:
    """Forward and backward over the passes, then the update. The only synchronisation is at the end, once.

    A loss or gradient that is not finite never reaches the weights: then the weights and the optimizer's states stay
    as they are, on every rank, and the result says why.
    Where images failed (on_bad_media: mask), the denominator becomes the weight that was left.
    beat is told before each pass what comes, for the watchdog; mark, of each of its phases.
    """
    losses: list[torch.Tensor] = []
    masked: list[str] = []
    waited, weight, digest = 0.0, 0.0, 0
    groups = torch.zeros((), dtype=torch.float64, device=world.device)
    for number, (request, has_images) in enumerate(zip(plan.passes, plan.has_images, strict=True), 1):
        beat(f"step {plan.step}, {pack_names(request.places)}")
        began = time.perf_counter()
        mark(f"pass {number}/data")
        batch = next(batches)
        waited += time.perf_counter() - began
        masked += batch.masked
        weight += batch.weight
        digest += batch.digest
        mark(f"pass {number}/forward")
        loss, by_group = model(batch, has_images, world.sequence_group)
        mark(f"pass {number}/backward")
        if loss.requires_grad:
            (loss / plan.weight).backward()
        else:
            # A step without images that trains the vision tower alone: no backward follows to free what was gathered.
            reshard_all(model)
        losses.append(loss.detach())
        groups = groups + by_group
    mark("norms")
    grads = {part: _local_grads(parameters) for part, parameters in parts.items()}
    squares = [nn.utils.get_total_norm(grads.get(part, [])).to(world.device).double().square() for part in PARTS]
    # In halves, which float64 sums exactly.
    halves = divmod(digest % 2**64, 2**32)
    on_host = [waited, len(masked), weight, *halves, asked.stop, asked.save]
    sums = world.total(
        torch.cat(
            [
                torch.stack([torch.stack(losses).double().sum(), *squares]),
                torch.tensor(on_host, dtype=torch.float64).to(world.device),
                groups.flatten(),
            ]
        )
    )
    loss_sum, squares_sum, (waited, num_masked, weight, high, low, stop, save) = sums[0], sums[1:4], sums[4:11]
    denominator = weight if num_masked else plan.weight
    if denominator == 0:
        own = [place for request in plan.passes for place in request.places]
        raise TrainError(f"step {plan.step}: every image failed, no target is left; {pack_names(_of_all_ranks(own))}")
    if not math.isclose(weight, denominator, rel_tol=1e-6):
        raise TrainError(
            f"step {plan.step}: the targets that were read have the weight {weight}, packs.parquet says {plan.weight};"
            " rebuild the shards"
        )
    rescale = plan.weight / denominator
    norms = {
        part: rescale * math.sqrt(square / world.replicas)
        for part, square in zip(PARTS, squares_sum, strict=True)
        if part in parts
    }
    norm = math.hypot(*norms.values())
    fault = ""
    if math.isfinite(loss_sum) and math.isfinite(norm):
        mark("clip")
        factor = rescale * min(1.0, max_grad_norm / (norm + 1e-6))
        if factor != 1.0:
            torch._foreach_mul_([grad for part in grads.values() for grad in part], factor)
        mark("update")
        for group in optimizer.param_groups:
            group["lr"] = lr_share * group["peak"]
        optimizer.step()
    else:
        fault = _not_finite(plan, torch.stack(losses).tolist(), loss_sum, norm)
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=loss_sum / denominator,
        grad_norm=norm,
        part_norms=norms,
        waited=waited / world.size,
        masked=_of_all_ranks(masked) if num_masked else [],
        fault=fault,
        digest=(int(high) * 2**32 + int(low)) % 2**64,
        groups=np.array(sums[11:]).reshape(-1, 2),
        stop=stop > 0,
        save=save > 0,
    )


def _local_grads(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """This rank's shard of each gradient that a step produced."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]


def _not_finite(plan: StepPlan, own_losses: Sequence[float], loss_sum: float, norm: float) -> str:
    """Every rank comes here together, so the packs can be asked for."""
    bad = [request for request, loss in zip(plan.passes, own_losses, strict=True) if not math.isfinite(loss)]
    own = [place for request in bad for place in request.places if request.counts]
    everyone = _of_all_ranks(own)
    suspects = pack_names(everyone) if everyone else "no pass alone is to blame"
    return f"step {plan.step}: loss sum is {loss_sum}, gradient norm {norm}, expected finite numbers; {suspects}"


def _of_all_ranks(own: list[T]) -> list[T]:
    """The entries of every rank's list, by rank."""
    everyone: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, own)
    return list(chain.from_iterable(everyone))
