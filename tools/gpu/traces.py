"""One step under torch's profiler: seconds by class of kernel, and how often the host waited.

Kernels are told apart by their names. Those of the loss and of the optimizer have names as others have, so marks stand
around these two: tiny kernels that a step has nowhere else (erfinv, erfc).
"""

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from tools.gpu.timing import synchronize

KernelClass = Literal["gemm", "attention", "elementwise", "loss", "optimizer", "copy", "communication"]
CLASSES: tuple[KernelClass, ...] = get_args(KernelClass)
_NAMES: tuple[tuple[KernelClass, str], ...] = (
    ("communication", r"nccl"),
    # Before products: their templates name CUTLASS too.
    ("attention", r"flash_(fwd|bwd)|fmha|flash::|attention|_sdpa_|softmax_warp"),
    ("copy", r"split_with_sizes|chunk_cat|CopyFunctor|Memcpy|Memset"),
    ("gemm", r"gemm|cutlass|nvjet|cublas|wgrad|dgrad|convolve|xmma|splitK"),
)
"""The first match holds; what has none is elementwise: norms, rotations, activations, sums."""
_MARKS: Mapping[str, KernelClass] = {"erfinv": "loss", "erfc": "optimizer"}
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
_TOP = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """What one step did on the GPU. Seconds."""

    classes: dict[str, float]
    """KernelClass -> the sum of its kernels."""
    busy: float
    """In which at least one kernel ran."""
    span: float
    """From the first kernel's start to the last one's end."""
    kernels: int
    marks: dict[str, int]
    """Marks that were found, of each of the two kinds; an even number, or the classes are wrong."""
    waits: dict[str, int]
    """Call of the CUDA runtime that waits -> how often."""
    top: list[tuple[str, int, float]]
    """Kernels that took longest: name, calls, seconds."""


def trace_step(
    step: Callable[[], object], optimizer: torch.optim.Optimizer, loss_at: str, device: torch.device
) -> Trace:
    """Profile one step. loss_at: dotted name of the function that computes the loss, "" where there is none to mark."""
    return read_trace(traced_events(step, optimizer, loss_at, device))


def traced_events(
    step: Callable[[], object], optimizer: torch.optim.Optimizer, loss_at: str, device: torch.device
) -> list[dict[str, Any]]:
    """The events of one step as torch writes them for Chrome: a GPU's kernels, or a CPU's operators."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with tempfile.TemporaryDirectory() as folder, _marked(optimizer, loss_at, device):
        with profile(activities=[activity]) as found:
            step()
            synchronize(device)
        file = Path(folder) / "trace.json"
        found.export_chrome_trace(str(file))
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
        if marked := next((part for mark, part in _MARKS.items() if re.search(_word(mark), name)), None):
            marks[marked] += 1
            inside = None if inside else marked
            continue
        kind = class_of(name, str(event["cat"]))
        seconds[inside if inside and kind not in ("copy", "communication") else kind] += took
        calls[name] += 1
        totals[name] += took
    runtime = Counter(str(event["name"]) for event in events if event.get("cat") == "cuda_runtime")
    return Trace(
        classes=seconds,
        busy=_union(work),
        span=1e-6 * (max(_ends(work), default=0.0) - min((float(e["ts"]) for e in work), default=0.0)),
        kernels=sum(calls.values()),
        marks=dict(marks),
        waits={name: runtime[name] for name in _WAITS if runtime[name]},
        top=[(name[:200], calls[name], totals[name]) for name in sorted(totals, key=lambda n: -totals[n])[:_TOP]],
    )


def class_of(name: str, category: str = "kernel") -> KernelClass:
    """The class of a kernel by its name."""
    if category != "kernel":
        return "copy"
    return next((kind for kind, pattern in _NAMES if re.search(pattern, name, re.IGNORECASE)), "elementwise")


def _word(mark: str) -> str:
    return rf"(?<![a-z]){mark}(?![a-z])"


def _ends(work: Iterable[Mapping[str, Any]]) -> Iterator[float]:
    return (float(event["ts"]) + float(event["dur"]) for event in work)


def _union(work: Iterable[Mapping[str, Any]]) -> float:
    """Seconds that these events, sorted by start, cover together."""
    covered, until = 0.0, float("-inf")
    for event in work:
        start = max(float(event["ts"]), until)
        until = max(float(event["ts"]) + float(event["dur"]), until)
        covered += max(until - start, 0.0)
    return 1e-6 * covered


@contextmanager
def _marked(optimizer: torch.optim.Optimizer, loss_at: str, device: torch.device) -> Iterator[None]:
    spot = torch.zeros(1, device=device)
    hooks = [
        optimizer.register_step_pre_hook(lambda *_: _quiet(torch.erfc, spot)),
        optimizer.register_step_post_hook(lambda *_: _quiet(torch.erfc, spot)),
    ]
    with _loss_marked(loss_at, spot):
        yield
    for hook in hooks:
        hook.remove()


def _loss_marked(loss_at: str, spot: torch.Tensor) -> AbstractContextManager[object]:
    if not loss_at:
        return nullcontext()
    module, _, name = loss_at.rpartition(".")
    plain = getattr(__import__(module, fromlist=[name]), name)

    def marked(*args: Any, **kwargs: Any) -> Any:
        _quiet(torch.erfinv, spot)
        output = plain(*args, **kwargs)
        _quiet(torch.erfinv, spot)
        return output

    return patch(loss_at, marked)


def _quiet(mark: Callable[[torch.Tensor], torch.Tensor], spot: torch.Tensor) -> None:
    with torch.no_grad():
        mark(spot)
