"""One step under torch's profiler: seconds by class of kernel, and how often the host waited.

Kernels are told apart by their names. Those of the loss and of the optimizer have names as others have, so marks stand
around these two, see marked.py.
"""

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from lmms.train.watch.marks import Mark
from tools.gpu.marked import MARKS, OF_LOSS, OF_OPTIMIZER, marked
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
    """Marks that were found around loss and optimizer: see marks_missing."""
    waits: dict[str, int]
    """Call of the CUDA runtime that waits -> how often."""
    top: list[tuple[str, int, float]]
    """Kernels that took longest: name, calls, seconds."""


def trace_step(
    step: Callable[[Mark], object], optimizer: torch.optim.Optimizer, loss_at: str, device: torch.device
) -> Trace:
    """Profile one step, after one that warms profiler and marks up. loss_at: see marked.marked."""
    return read_trace(traced_events(step, optimizer, loss_at, device))


def traced_events(
    step: Callable[[Mark], object], optimizer: torch.optim.Optimizer, loss_at: str, device: torch.device
) -> list[dict[str, Any]]:
    """The events of one step as torch writes them for Chrome: a GPU's kernels, or a CPU's operators."""
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        window = schedule(wait=0, warmup=1, active=1, repeat=1)
        with (
            marked(optimizer, loss_at, device) as mark,
            profile(
                activities=[activity],
                schedule=window,
                on_trace_ready=partial(profile.export_chrome_trace, path=str(file)),
            ) as found,
        ):
            for _ in range(2):
                step(mark)
                synchronize(device)
                found.step()
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
    marks: Counter[str] = Counter(dict.fromkeys(MARKS.values(), 0))
    calls, totals = Counter[str](), defaultdict[str, float](float)
    inside: KernelClass | None = None
    for event in work:
        name, took = str(event["name"]), 1e-6 * float(event["dur"])
        if marked := next((part for mark, part in MARKS.items() if re.search(_word(mark), name)), None):
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


def marks_missing(trace: Mapping[str, Any], passes: int) -> str:
    """Why the classes of a trace (as a dict) of so many passes with a marked loss are not known; "" where they are."""
    expected = {"loss": OF_LOSS * passes, "optimizer": OF_OPTIMIZER}
    return "" if trace["marks"] == expected else f"marks {trace['marks']}, expected {expected}"


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
