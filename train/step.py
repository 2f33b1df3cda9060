"""One optimizer step: which packs, which micro-steps, forward and backward, norms, clipping, update.

The loss of a step is the sum of weighted cross entropies over its targets, divided by their total weight, which the
sidecar knows before anything is read. So a step is the same sum for any number of ranks and micro-steps.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lmms.configs.errors import TrainError
from lmms.configs.train import Part
from lmms.train.batch import Batch
from lmms.train.order import Order, micro_steps, step_packs
from lmms.train.parallel import World
from lmms.train.stream import Sidecar

PARTS: tuple[Part, ...] = ("llm", "vision", "aligner")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StepPlan:
    """What one rank does in one step, known from the sidecar alone."""

    step: int
    position: int
    """Packs trained before this step."""
    packs: npt.NDArray[np.int64]
    """[global_packs]: the packs of all ranks."""
    micro_steps: list[list[int]]
    """The packs of each forward pass of this rank."""
    has_images: list[bool]
    """Of each forward pass: whether any rank's packs hold images. The same on every rank, as are the collectives."""
    weight: float
    """Total weight of the step's targets."""
    tokens: int
    target_tokens: int


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


def plan_steps(
    order: Order, sidecar: Sidecar, rank: int, world: int, micro_packs: int, step: int, position: int
) -> Iterator[StepPlan]:
    """The plans of step + 1, step + 2, ... without end, for a run that stands at `position` after `step`."""
    for number in count(step + 1):
        packs = step_packs(order, position)
        own = micro_steps(packs, rank, world, micro_packs)
        # Rank r holds packs [r::world], so the ranks' packs of one micro-step stand together.
        has_images = [bool(images.any()) for images in sidecar.media[packs].reshape(len(own), -1)]
        yield StepPlan(
            step=number,
            position=position,
            packs=packs,
            micro_steps=own,
            has_images=has_images,
            weight=float(sidecar.target_weight[packs].sum()),
            tokens=int(sidecar.tokens[packs].sum()),
            target_tokens=int(sidecar.target_tokens[packs].sum()),
        )
        position += len(packs)


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    parts: Mapping[Part, Sequence[nn.Parameter]],
    plan: StepPlan,
    batches: Iterator[Batch],
    world: World,
    lr: float,
    max_grad_norm: float,
) -> StepResult:
    """Forward and backward over the micro-steps, then the update. The only synchronisation is at the end, once.

    A loss or gradient that is not finite raises TrainError before it can reach the weights.
    Where images failed (on_bad_media: mask), the denominator becomes the weight that was left.
    """
    losses: list[torch.Tensor] = []
    masked: list[str] = []
    waited = weight = 0.0
    for has_images in plan.has_images:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        masked += batch.masked
        weight += float(batch.weights.sum(dtype=torch.float64))
        loss = model(batch.to(world.device), has_images)
        if loss.requires_grad:
            (loss / plan.weight).backward()
        else:
            # A step without images that trains the vision tower alone: no backward follows to free what was gathered.
            cast(FSDPModule, model).reshard()
        losses.append(loss.detach())
    grads = {part: _local_grads(parameters) for part, parameters in parts.items()}
    squares = [nn.utils.get_total_norm(grads.get(part, [])).to(world.device).double().square() for part in PARTS]
    on_host = torch.tensor([waited, len(masked), weight], dtype=torch.float64).to(world.device)
    sums = world.total(torch.cat([torch.stack([torch.stack(losses).double().sum(), *squares]), on_host]))
    loss_sum, squares_sum, (waited, num_masked, weight) = sums[0], sums[1:4], sums[4:]
    denominator = weight if num_masked else plan.weight
    if denominator == 0:
        raise TrainError(f"step {plan.step}: every image failed, no target is left; packs {plan.packs.tolist()}")
    rescale = plan.weight / denominator
    norms = {
        part: rescale * math.sqrt(square) for part, square in zip(PARTS, squares_sum, strict=True) if part in parts
    }
    norm = math.hypot(*norms.values())
    if not (math.isfinite(loss_sum) and math.isfinite(norm)):
        raise TrainError(_not_finite(plan, torch.stack(losses).tolist(), loss_sum, norm))
    factor = rescale * min(1.0, max_grad_norm / (norm + 1e-6))
    if factor != 1.0:
        torch._foreach_mul_([grad for part in grads.values() for grad in part], factor)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=loss_sum / denominator,
        grad_norm=norm,
        part_norms=norms,
        waited=waited / world.size,
        masked=_of_all_ranks(masked) if num_masked else [],
    )


def _local_grads(parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """This rank's shard of each gradient that a step produced."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]


def _not_finite(plan: StepPlan, own_losses: Sequence[float], loss_sum: float, norm: float) -> str:
    """Every rank comes here together, so the packs can be asked for."""
    bad = [packs for packs, loss in zip(plan.micro_steps, own_losses, strict=True) if not math.isfinite(loss)]
    own = [pack for packs in bad for pack in packs]
    suspects = sorted(_of_all_ranks(own)) or plan.packs.tolist()
    return (
        f"step {plan.step}: loss sum is {loss_sum}, gradient norm {norm}, expected finite numbers; packs {suspects};"
        " look at them with `lmms inspect shard DIR --pack I`, or lower optim.lr"
    )


def _of_all_ranks(own: list[T]) -> list[T]:
    """The entries of every rank's list, by rank."""
    everyone: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, own)
    return list(chain.from_iterable(everyone))
