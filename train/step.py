"""One optimizer step: forward and backward over its passes, norms, clipping, update.

The loss of a step is the sum of weighted cross entropies over its targets, divided by their total weight, which the
sidecar knows before anything is read. So a step is the same sum for any number of ranks and passes.
"""

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmms.configs.by_part import Part
from lmms.configs.contract.hashing import key64
from lmms.configs.errors import TrainError
from lmms.train.batch.batch import Batch
from lmms.train.data.steps import StepPlan, pack_names
from lmms.train.model.forward import TrainModel
from lmms.train.parallel.sharding import reshard_all
from lmms.train.parallel.world import World
from lmms.train.watch.watch import Watch


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Learner:
    """What a step changes, and the ranks that change it together."""

    model: TrainModel
    optimizer: torch.optim.Optimizer
    """Each of its groups has its peak learning rate under "peak"."""
    parts: Mapping[Part, Sequence[nn.Parameter]]
    """The trained parameters by part."""
    max_grad_norm: float
    world: World


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What came of a step, over all ranks."""

    loss: float
    grad_norm: float
    """Before clipping."""
    part_norms: dict[Part, float]
    """The norm of each trained part's gradients."""
    waited: float
    """Seconds without data, averaged over the ranks."""
    masked: list[str]
    """A sentence for each conversation that was trained with weight 0 since an image or sound failed."""
    fault: str
    """What was not finite, with the packs, where the update was left out for that reason; else empty."""
    digest: int
    """Digest of the packs that were read and trained, by all ranks: see sets.packs_digest."""
    groups: npt.NDArray[np.float64]
    """[groups, 2]: sum of weighted cross entropy and sum of weights of each of the batches' groups."""
    stop: bool
    """Whether any rank was told to stop before the step ended, see signals.Asked."""
    save: bool
    """Whether any rank was told to write a checkpoint."""


@dataclass(slots=True)
class _Passes:
    """What the passes of this rank left behind. Tensors stay on the device: nothing has waited for them."""

    losses: list[Tensor] = field(default_factory=list)
    groups: Tensor | float = 0.0
    masked: list[str] = field(default_factory=list)
    waited: float = 0.0
    weight: float = 0.0
    digest: int = 0


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over all ranks."""

    loss: float
    squares: dict[Part, float]
    waited: float
    masked: float
    weight: float
    digest: int
    stop: bool
    save: bool
    groups: npt.NDArray[np.float64]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed every global generator of this process: of Python, of old numpy, of torch on the CPU and on each GPU."""
    key = key64("step", seed, step, rank)
    random.seed(key)
    np.random.seed([key % 2**32, key >> 32])
    torch.manual_seed(key)


def take_step(learner: Learner, plan: StepPlan, batches: Iterator[Batch], lr_share: float, watch: Watch) -> StepResult:
    """Forward and backward over the passes, then the update. The only synchronisation is at the end, once.

    A loss or gradient that is not finite never reaches the weights: then the weights and the optimizer's states stay
    as they are, on every rank, and the result says why.
    Where images or sounds failed (on_bad_media: mask), the denominator becomes the weight that was left.
    batches: gives the batch of each pass of the plan. lr_share: the factor of each peak learning rate.
    TrainError where the step has no target left, or where the shards' sidecar was wrong about their weight.
    """
    world = learner.world
    passes = _forward_backward(learner, plan, batches, watch)
    watch.mark("norms")
    grads = {part: _local_grads(parameters) for part, parameters in learner.parts.items()}
    totals = _total(passes, grads, watch, world)
    denominator = _denominator(plan, totals, world)
    rescale = plan.weight / denominator
    norms = {part: rescale * math.sqrt(square / world.replicas) for part, square in totals.squares.items()}
    norm = math.hypot(*norms.values())
    finite = math.isfinite(totals.loss) and math.isfinite(norm)
    if finite:
        factor = rescale * min(1.0, learner.max_grad_norm / (norm + 1e-6))
        _update(learner.optimizer, list(chain.from_iterable(grads.values())), factor, lr_share, watch)
    fault = "" if finite else _not_finite(plan, torch.stack(passes.losses).tolist(), totals.loss, norm, world)
    learner.optimizer.zero_grad(set_to_none=True)
    return StepResult(
        loss=totals.loss / denominator,
        grad_norm=norm,
        part_norms=norms,
        waited=totals.waited / world.size,
        masked=world.joined(passes.masked) if totals.masked else [],
        fault=fault,
        digest=totals.digest,
        groups=totals.groups,
        stop=totals.stop,
        save=totals.save,
    )


def _forward_backward(learner: Learner, plan: StepPlan, batches: Iterator[Batch], watch: Watch) -> _Passes:
    passes = _Passes()
    of_passes = zip(plan.passes, plan.has_images, plan.has_sounds, strict=True)
    for number, (request, has_images, has_sounds) in enumerate(of_passes, 1):
        watch.beat(f"step {plan.step}, {pack_names(request.places)}")
        began = time.perf_counter()
        watch.mark(f"pass {number}/data")
        batch = next(batches)
        passes.waited += time.perf_counter() - began
        passes.masked += batch.masked
        passes.weight += batch.weight
        passes.digest += batch.digest
        watch.mark(f"pass {number}/forward")
        loss, groups = learner.model(batch, has_images, learner.world.sequence_group, step_has_sounds=has_sounds)
        watch.mark(f"pass {number}/backward")
        if loss.requires_grad:
            (loss / plan.weight).backward()
        else:
            # A step without media that trains a tower alone: no backward follows to free what was gathered.
            reshard_all(learner.model)
        passes.losses.append(loss.detach())
        passes.groups = passes.groups + groups
    return passes


def _local_grads(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """This rank's shard of each gradient that a step produced."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return [grad.to_local() if isinstance(grad, DTensor) else grad for grad in grads]


def _total(passes: _Passes, grads: Mapping[Part, Sequence[Tensor]], watch: Watch, world: World) -> _Totals:
    """Everything that ranks have to sum, in one reduction and one wait."""
    groups = torch.as_tensor(passes.groups, dtype=torch.float64, device=world.device)
    on_device = [
        torch.stack(passes.losses).double().sum(),
        *(nn.utils.get_total_norm(shards).to(world.device).double().square() for shards in grads.values()),
    ]
    # The digest in halves, which float64 sums exactly.
    halves = divmod(passes.digest % 2**64, 2**32)
    on_host = [passes.waited, len(passes.masked), passes.weight, *halves, watch.asked.stop, watch.asked.save]
    sums = iter(
        world.total(
            torch.cat(
                [
                    torch.stack(on_device),
                    torch.tensor(on_host, dtype=torch.float64).to(world.device),
                    groups.flatten(),
                ]
            )
        )
    )
    loss = next(sums)
    squares = dict(zip(grads, islice(sums, len(grads)), strict=True))
    waited, masked, weight, high, low, stop, save = islice(sums, len(on_host))
    return _Totals(
        loss=loss,
        squares=squares,
        waited=waited,
        masked=masked,
        weight=weight,
        digest=(int(high) * 2**32 + int(low)) % 2**64,
        stop=stop > 0,
        save=save > 0,
        groups=np.array(list(sums)).reshape(-1, 2),
    )


def _denominator(plan: StepPlan, totals: _Totals, world: World) -> float:
    """The weight that the step's loss is divided by. Every rank comes here together."""
    if not totals.masked:
        if not math.isclose(totals.weight, plan.weight, rel_tol=1e-6):
            raise TrainError(
                f"step {plan.step}: the targets that were read have the weight {totals.weight}, packs.parquet says"
                f" {plan.weight}; rebuild the shards"
            )
        return plan.weight
    if totals.weight == 0:
        packs = pack_names(world.joined([place for request in plan.passes for place in request.places]))
        raise TrainError(f"step {plan.step}: every image failed, no target is left; {packs}")
    return totals.weight


def _update(
    optimizer: torch.optim.Optimizer, grads: list[Tensor], factor: float, lr_share: float, watch: Watch
) -> None:
    watch.mark("clip")
    if factor != 1.0:
        torch._foreach_mul_(grads, factor)
    watch.mark("update")
    for group in optimizer.param_groups:
        group["lr"] = lr_share * group["peak"]
    optimizer.step()


def _not_finite(plan: StepPlan, losses: Sequence[float], loss_sum: float, norm: float, world: World) -> str:
    """What was not finite, and in which packs. Every rank comes here together."""
    bad = [request for request, loss in zip(plan.passes, losses, strict=True) if not math.isfinite(loss)]
    places = world.joined([place for request in bad for place in request.places if request.counts])
    suspects = pack_names(places) if places else "no pass alone is to blame"
    return f"step {plan.step}: loss sum is {loss_sum}, gradient norm {norm}, expected finite numbers; {suspects}"
