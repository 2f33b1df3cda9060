"""How a call is timed, a result compared, and the steps of any training taken."""

import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lmms.configs.errors import TrainError
from lmms.train import StepResult
from lmms.train.watch.metrics import peak_memory
from tools.gpu.pieces.models import Sizes

_WARM = 3
_AT_THE_END = ("train/step.py", "train/parallel/world.py")
"""Files that read a step's one sum over ranks, after all passes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Difference between a computation in bf16 and the same in fp32."""

    name: str
    errors: dict[str, float]
    """Tensor -> relative_error."""
    tolerances: dict[str, float]
    passed: bool


@dataclass(kw_only=True, slots=True)
class Steps:
    """Results of steps, all on the same packs."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    """Norms of the same steps, before clipping."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of the timed steps: from asking for data until the weights are updated."""
    waited: list[float] = field(default_factory=list)
    """Seconds of the timed steps without data."""
    warm_seconds: float = 0.0
    """Seconds of the steps before the timed steps, compiling included."""
    graphs: int = 0
    """Graphs compiled in the steps before the timed steps."""
    recompiles: int = 0
    """Graphs compiled later, which should not happen."""
    peak_memory: int = 0
    """Bytes of the device at the peak."""

    @property
    def median(self) -> float:
        """Median of the timed seconds."""
        return median(self.seconds)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median of one call's seconds after a warm-up; on a GPU by CUDA events, so that launching costs nothing."""
    for _ in range(_WARM):
        run()
    synchronize(device)
    if device.type != "cuda":
        times = [time.perf_counter()]
        for _ in range(repeats):
            run()
            times.append(time.perf_counter())
        return median(after - before for before, after in pairwise(times))
    event: Any = torch.cuda.Event
    events = [event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for after in events[1:]:
        run()
        after.record()
    synchronize(device)
    return median(float(before.elapsed_time(after)) for before, after in pairwise(events)) / 1e3


def check(name: str, errors: Mapping[str, float], tolerances: Mapping[str, float]) -> Check:
    """The Check of these errors: passed if every error is a number within its tolerance."""
    passed = all(errors[tensor] <= tolerance for tensor, tolerance in tolerances.items())
    return Check(name=name, errors=dict(errors), tolerances=dict(tolerances), passed=passed)


def relative_error(computed: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """Norm of the difference over the norm of `expected`, or over `floor` if larger; in fp32."""
    size = max(float(expected.float().norm()), floor)
    return float((computed.float() - expected.float()).norm()) / size


def time_steps(take: Callable[[], StepResult], sizes: Sizes, device: torch.device, deadline: float) -> Steps:
    """Take steps until there are enough, or the next one would end after the deadline (time.monotonic).

    TrainError for a step that is not finite.
    """
    steps = Steps()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before, began = int(counters["stats"]["unique_graphs"]), time.monotonic()
    for _ in range(sizes.warm_steps):
        _keep(steps, take())
    synchronize(device)
    steps.warm_seconds = time.monotonic() - began
    steps.graphs = int(counters["stats"]["unique_graphs"]) - before
    while len(steps.seconds) < sizes.timed_steps:
        began_step = time.perf_counter()
        result = take()
        synchronize(device)
        steps.seconds.append(time.perf_counter() - began_step)
        steps.waited.append(result.waited)
        _keep(steps, result)
        if time.monotonic() + steps.seconds[-1] > deadline:
            break
    steps.recompiles = int(counters["stats"]["unique_graphs"]) - before - steps.graphs
    steps.peak_memory = peak_memory(device)
    return steps


def _keep(steps: Steps, result: StepResult) -> None:
    if result.fault or not math.isfinite(result.loss):
        raise TrainError(result.fault or f"the loss is {result.loss}")
    steps.losses.append(result.loss)
    steps.grad_norms.append(result.grad_norm)


def faults_of(steps: Steps) -> list[str]:
    """Faults of steps, in sentences."""
    faults = []
    if not steps.losses[-1] < steps.losses[0]:
        faults.append(f"the loss did not fall: {steps.losses[0]:.4f}, then {steps.losses[-1]:.4f}")
    if steps.recompiles:
        warm = len(steps.losses) - len(steps.seconds)
        faults.append(f"{steps.recompiles} graphs were compiled after the first {warm} steps")
    return faults


def waits_in(step: Callable[[], object]) -> dict[str, int]:
    """file:line -> how often a step waits for the GPU there, as torch says. Nothing on a CPU."""
    if not torch.cuda.is_available():
        step()
        return {}
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return places_of(caught)


def places_of(caught: list[warnings.WarningMessage]) -> dict[str, int]:
    """Places of torch's warnings about synchronising calls: the path from train/ on for lmms, else folder and file."""
    calls = [warning for warning in caught if "synchroniz" in str(warning.message)]
    return dict(Counter(f"{_place(Path(warning.filename).parts)}:{warning.lineno}" for warning in calls))


def _place(parts: tuple[str, ...]) -> str:
    room = len(parts) - 1 - parts[::-1].index("train") if "train" in parts else -2
    return "/".join(parts[room:])


def early_waits(places: Mapping[str, int]) -> dict[str, int]:
    """Waits before the end of a step, where there should be none."""
    return {place: count for place, count in places.items() if not place.startswith(_AT_THE_END)}
