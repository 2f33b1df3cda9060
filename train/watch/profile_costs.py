"""What a profile says in short: where the time went, found in the events of a Chrome trace of torch's profiler.

The profiler's key_averages() and export_stacks() are not used: for steps with stacks they take ten times as long.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

Event = Mapping[str, Any]
"""{ph, cat, name, pid, tid, ts, dur, args}; times in microseconds."""

_ROWS, _TOP = 60, 8
"""Rows of each kind in the file, and on the screen."""

_KERNELS, _CALLS = ("kernel", "gpu_memcpy", "gpu_memset"), ("cuda_runtime", "cuda_driver")
"""Categories: what runs on a GPU, and what starts it, with the same args.correlation."""

KINDS: Mapping[str, str] = {
    "kernels": "kernels and copies on the GPU",
    "operators": "operators on the CPU, without those inside them",
    "ranges": "ranges on the CPU, with all that is inside them",
}


_OBJECT = re.compile(r" at 0x\w+|(?<=^nn\.Module: )(\w+)_\d+$")


@dataclass(frozen=True, slots=True)
class Cost:
    """All events of one name."""

    name: str
    calls: int
    us: float


def costs_of(events: Sequence[Event]) -> dict[str, list[Cost]]:
    """Kind -> its costs, the most expensive first."""
    times = {kind: defaultdict[str, list[float]](list) for kind in KINDS}
    for event in events:
        if event.get("cat") in _KERNELS:
            times["kernels"][event["name"]].append(event["dur"])
        elif event.get("cat") == "user_annotation":
            times["ranges"][event["name"]].append(event["dur"])
    for stack, self_us in _nested(event for event in events if event.get("cat") == "cpu_op"):
        times["operators"][stack[-1]["name"]].append(self_us)
    return {
        kind: sorted((Cost(name, len(us), sum(us)) for name, us in by_name.items()), key=lambda cost: -cost.us)
        for kind, by_name in times.items()
    }


def costs_table(costs: Mapping[str, Sequence[Cost]], steps: int) -> str:
    """The most expensive of each kind, as the text of a file; figures are means over the steps."""
    blocks = [[title, *_rows(costs[kind], kind, steps, _ROWS), ""] for kind, title in KINDS.items() if costs[kind]]
    return "\n".join(line for block in blocks for line in block)


def top_lines(costs: Mapping[str, Sequence[Cost]], steps: int) -> list[str]:
    """The most expensive kernels of a GPU, or operators of a CPU, each in a line."""
    kind = "kernels" if costs["kernels"] else "operators"
    return _rows(costs[kind], kind, steps, _TOP)


def folded_stacks(events: Sequence[Event]) -> dict[str, str]:
    """Device -> lines `frame;frame;frame microseconds`, from which flame graphs are drawn: for the CPU the time of each
    frame without frames inside it; for the GPU, if it was used, the time of kernels under the stack that started them.
    """
    kernels = {_correlation(event): event for event in events if event.get("cat") in _KERNELS}
    cpu, gpu = Counter[str](), Counter[str]()
    of_cpu = (
        event for event in events if event.get("cat") in ("cpu_op", "user_annotation", "python_function", *_CALLS)
    )
    for stack, self_us in _nested(of_cpu):
        path = ";".join(_frame(event["name"]) for event in stack)
        cpu[path] += round(self_us)
        if stack[-1]["cat"] in _CALLS and (kernel := kernels.get(_correlation(stack[-1]))):
            gpu[f"{path};{_frame(kernel['name'])}"] += round(kernel["dur"])
    texts = {
        device: "".join(f"{path} {us}\n" for path, us in by_path.items() if us > 0)
        for device, by_path in (("cpu", cpu), ("gpu", gpu))
    }
    return {device: text for device, text in texts.items() if text}


@cache
def _frame(name: str) -> str:
    """A name without the number of an object, so that layers and steps fall together."""
    return _OBJECT.sub(r"\1", name.replace(";", ","))


def _correlation(event: Event) -> Any:
    return event.get("args", {}).get("correlation")


def _end(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def _nested(events: Iterable[Event]) -> Iterator[tuple[list[Event], float]]:
    """(events of one thread, each inside the event before; time of the last without the events inside it), for all."""
    threads = defaultdict[Any, list[Event]](list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    for of_thread in threads.values():
        stack, self_us = list[Event](), list[float]()
        for event in sorted(of_thread, key=lambda event: (event["ts"], -event["dur"])):
            # By a rounding, an event may begin inside another event and not end there.
            while stack and (_end(stack[-1]) <= event["ts"] or _end(stack[-1]) < _end(event)):
                yield stack, self_us.pop()
                stack.pop()
            if self_us:
                self_us[-1] -= event["dur"]
            stack.append(event)
            self_us.append(event["dur"])
        while stack:
            yield stack, self_us.pop()
            stack.pop()


def _rows(costs: Sequence[Cost], kind: str, steps: int, rows: int) -> list[str]:
    total = sum(cost.us for cost in costs)
    # Ranges are inside one another: their times have no sum.
    shares = ["" if kind == "ranges" else f"{cost.us / total:6.1%} " for cost in costs[:rows]]
    return [
        f"{share}{cost.us / steps / 1e3:10.3f} ms {cost.calls / steps:8.1f} calls  {cost.name[:160]}"
        for share, cost in zip(shares, costs, strict=False)
    ]
