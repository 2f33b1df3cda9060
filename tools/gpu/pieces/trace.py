"""One step under torch's profiler: seconds by class of kernel, and how often the host waited.

The name of a kernel gives its class. Kernels of the loss and of the optimizer have names like other kernels, so marks
stand around these two parts: tiny kernels that a step has nowhere else. The marked part of the loss is its forward and
backward; the marked part of the optimizer is the norms of the gradients, clipping and the update.
"""

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from lmms.train.model.forward import TrainModel
from lmms.train.model.loss import HeadLoss
from lmms.train.watch.marks import Mark
from tools.gpu.pieces.measuring import synchronize

KernelClass = Literal["gemm", "attention", "elementwise", "loss", "optimizer", "copy", "communication"]
CLASSES: tuple[KernelClass, ...] = get_args(KernelClass)
_NAMES: tuple[tuple[KernelClass, str], ...] = (
    ("communication", r"nccl"),
    # Before gemm: the templates of attention kernels name CUTLASS too.
    ("attention", r"flash_(fwd|bwd)|fmha|flash::|attention|_sdpa_|softmax_warp"),
    ("copy", r"split_with_sizes|chunk_cat|CopyFunctor|Memcpy|Memset"),
    ("gemm", r"gemm|cutlass|nvjet|cublas|wgrad|dgrad|convolve|xmma|splitK"),
)
"""The first match counts; a kernel without a match is elementwise: norms, rotations, activations, sums."""
_MARKS: Mapping[str, Literal["loss", "optimizer"]] = {
    r"(?<![a-z])erfinv(?![a-z])": "loss",
    r"(?<![a-z])erfc(?![a-z])": "optimizer",
}
"""Pattern in the name of a mark's kernel -> the part between its marks."""
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_TOP = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Work of one step on the GPU, in seconds."""

    classes: dict[str, float]
    """KernelClass -> seconds of its kernels."""
    busy: float
    """Time in which at least one kernel ran."""
    span: float
    """Time from the start of the first kernel to the end of the last."""
    kernels: int
    marks: dict[str, int]
    """Marks around loss and optimizer: see marks_missing."""
    waits: dict[str, int]
    """Waiting call of the CUDA runtime -> how often."""
    top: list[tuple[str, int, float]]
    """Kernels that took longest: name, calls, seconds."""


def trace_step(
    step: Callable[[Mark], object], optimizer: torch.optim.Optimizer, model: TrainModel | None, device: torch.device
) -> Trace:
    """Profile one step, after a step that warms profiler and marks up.

    step: takes the Mark that the step has to call. model: the model whose loss is marked; None for no marks of a loss.
    """
    return read_trace(traced_events(step, optimizer, model, device))


def traced_events(
    step: Callable[[Mark], object], optimizer: torch.optim.Optimizer, model: TrainModel | None, device: torch.device
) -> list[dict[str, Any]]:
    """The events of one step as torch writes them for Chrome: a GPU's kernels, or a CPU's operators."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        window = schedule(wait=0, warmup=1, active=1, repeat=1)
        write = partial(profile.export_chrome_trace, path=str(file))
        with (
            _marked(optimizer, model, device) as mark,
            profile(activities=[activity], schedule=window, on_trace_ready=write) as profiler,
        ):
            for _ in range(2):
                step(mark)
                synchronize(device)
                profiler.step()
        events: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    return events


def read_trace(events: Iterable[Mapping[str, Any]]) -> Trace:
    """The events of a Chrome trace as torch writes it (microseconds), summed."""
    events = [event for event in events if event.get("ph") == "X"]
    work = sorted(
        (event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")),
        key=lambda event: float(event["ts"]),
    )
    seconds: dict[str, float] = dict.fromkeys(CLASSES, 0.0)
    marks: Counter[str] = Counter(dict.fromkeys(_MARKS.values(), 0))
    calls, totals = Counter[str](), defaultdict[str, float](float)
    inside: KernelClass | None = None
    for event in work:
        name, took = str(event["name"]), 1e-6 * float(event["dur"])
        if part := next((part for pattern, part in _MARKS.items() if re.search(pattern, name)), None):
            marks[part] += 1
            inside = None if inside else part
            continue
        kind = class_of(name, str(event["cat"]))
        seconds[inside if inside and kind not in ("copy", "communication") else kind] += took
        calls[name] += 1
        totals[name] += took
    runtime = Counter(str(event["name"]) for event in events if event.get("cat") == "cuda_runtime")
    covered = list(_covered(work))
    return Trace(
        classes=seconds,
        busy=1e-6 * sum(end - start for start, end in covered),
        span=1e-6 * (covered[-1][1] - covered[0][0]) if covered else 0.0,
        kernels=sum(calls.values()),
        marks=dict(marks),
        waits={name: runtime[name] for name in _WAITS if runtime[name]},
        top=[(name[:200], calls[name], totals[name]) for name in sorted(totals, key=lambda n: -totals[n])[:_TOP]],
    )


def marks_missing(trace: Mapping[str, Any], passes: int) -> str:
    """Why the classes of a trace (as a dict) are not known; "" if they are. passes: passes with a marked loss."""
    expected = {"loss": 4 * passes, "optimizer": 2}
    return "" if trace["marks"] == expected else f"marks {trace['marks']}, expected {expected}"


def class_of(name: str, category: str = "kernel") -> KernelClass:
    """The class of a kernel by its name."""
    if category != "kernel":
        return "copy"
    return next((kind for kind, pattern in _NAMES if re.search(pattern, name, re.IGNORECASE)), "elementwise")


def _covered(work: Iterable[Mapping[str, Any]]) -> Iterator[tuple[float, float]]:
    """The time covered by these events, sorted by start: start and end of parts that do not overlap."""
    until = float("-inf")
    for event in work:
        start, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        yield max(start, until), max(end, until)
        until = max(end, until)


@contextmanager
def _marked(optimizer: torch.optim.Optimizer, model: TrainModel | None, device: torch.device) -> Iterator[Mark]:
    """A block in which steps that get this Mark set marks."""
    spot = torch.zeros(1, device=device)

    def mark(path: str) -> None:
        if path == "norms":
            _set(torch.erfc, spot)

    hook = optimizer.register_step_post_hook(lambda *_: _set(torch.erfc, spot))
    plain = model.loss if model else None
    if model and plain:
        model.loss = partial(_between_marks, plain, spot)
    yield mark
    if model and plain:
        model.loss = plain
    hook.remove()


def _between_marks(plain: HeadLoss, spot: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    # Backward runs in the opposite order.
    trained = [i for i, arg in enumerate(args) if isinstance(arg, Tensor) and arg.requires_grad]
    inputs = list(args)
    if trained:
        for i, value in zip(trained, _Mark.apply(spot, *(args[i] for i in trained)), strict=True):  # type: ignore[no-untyped-call]
            inputs[i] = value
    _set(torch.erfinv, spot)
    loss, by_group = plain(*inputs)
    _set(torch.erfinv, spot)
    return _Mark.apply(spot, loss)[0], by_group  # type: ignore[no-untyped-call]


class _Mark(torch.autograd.Function):
    """Returns its tensors unchanged; backward sets a mark of the loss when all their gradients are ready."""

    @staticmethod
    def forward(ctx: Any, spot: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.spot = spot
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        _set(torch.erfinv, ctx.spot)
        return None, *grads


def _set(kernel: Callable[[Tensor], Tensor], spot: Tensor) -> None:
    with torch.no_grad():
        kernel(spot)
