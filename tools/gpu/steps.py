"""Training steps timed as a user waits for them, whoever trains."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from lmms.configs.errors import TrainError
from lmms.train.model.kernels import compiled_graphs
from lmms.train.step import StepResult
from lmms.train.watch.metrics import peak_memory
from tools.gpu.sizes import Sizes
from tools.gpu.timing import synchronize


@dataclass(kw_only=True, slots=True)
class Steps:
    """What steps came to; all of them train on the same packs."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    """Of the same steps, before clipping."""
    seconds: list[float] = field(default_factory=list)
    """Of the timed ones: from asking for data until the weights are updated."""
    waited: list[float] = field(default_factory=list)
    """Of those, in which there was no data."""
    warm_seconds: float = 0.0
    """Of the steps before them, compiling included."""
    graphs: int = 0
    """Compiled in those."""
    recompiles: int = 0
    """Compiled after them, which should not happen."""
    peak_memory: int = 0
    """Bytes."""

    @property
    def median(self) -> float:
        """Of the timed seconds."""
        return median(self.seconds)


def time_steps(take: Callable[[], StepResult], sizes: Sizes, device: torch.device, deadline: float) -> Steps:
    """Take steps until there are enough, or the next one would end after the deadline (time.monotonic).

    TrainError for a step that is not finite.
    """
    steps = Steps()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before, began = compiled_graphs(), time.monotonic()
    for _ in range(sizes.warm_steps):
        _keep(steps, take())
    synchronize(device)
    steps.warm_seconds = time.monotonic() - began
    steps.graphs = compiled_graphs() - before
    while len(steps.seconds) < sizes.timed_steps:
        began_step = time.perf_counter()
        result = take()
        synchronize(device)
        steps.seconds.append(time.perf_counter() - began_step)
        steps.waited.append(result.waited)
        _keep(steps, result)
        if time.monotonic() + steps.seconds[-1] > deadline:
            break
    steps.recompiles = compiled_graphs() - before - steps.graphs
    steps.peak_memory = peak_memory(device)
    return steps


def faults_of(steps: Steps) -> list[str]:
    """What is wrong with them, in sentences."""
    found = []
    if not steps.losses[-1] < steps.losses[0]:
        found.append(f"the loss did not fall: {steps.losses[0]:.4f}, then {steps.losses[-1]:.4f}")
    if steps.recompiles:
        warm = len(steps.losses) - len(steps.seconds)
        found.append(f"{steps.recompiles} graphs were compiled after the first {warm} steps")
    return found


def _keep(steps: Steps, result: StepResult) -> None:
    if result.fault or not math.isfinite(result.loss):
        raise TrainError(result.fault or f"the loss is {result.loss}")
    steps.losses.append(result.loss)
    steps.grad_norms.append(result.grad_norm)
