"""The first difference of two runs: tools/compare_runs.py A B, for two output folders of `lmms train`.

Compares metrics.jsonl step by step: the digest of each step's packs exactly, and the losses to --rel. Prints the first
step at which the runs differ and exits 1; exits 0 where the runs agree in all steps that both have.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lmms.configs.errors import LmmsError, TrainError
from lmms.train.watch.metrics import METRICS_NAME, metrics_lines

Steps = Mapping[int, Mapping[str, Any]]


def read_steps(run: Path) -> dict[int, dict[str, Any]]:
    """Step -> its whole line of metrics.jsonl. TrainError for a folder that is not a run's output."""
    if not (run / METRICS_NAME).is_file():
        raise TrainError(f"{run / METRICS_NAME} cannot be read (no such file); expected a run's folder")
    return {line["step"]: line for line in metrics_lines(run)}


def differences(first: Steps, second: Steps, rel: float) -> Iterator[str]:
    """A sentence for each common step whose packs differ, or whose losses differ by more than `rel`."""
    for step in sorted(first.keys() & second.keys()):
        a, b = first[step], second[step]
        if a["digest"] != b["digest"]:
            yield f"step {step} consumed {a['digest']} at {a['position']} packs, and {b['digest']} at {b['position']}"
        for name in ("loss", "eval_loss"):
            x, y = a[name], b[name]
            if (x is None) != (y is None) or (x is not None and not math.isclose(x, y, rel_tol=rel, abs_tol=0.0)):
                yield f"step {step} has {name} {x!r}, and {y!r}"


def main(arguments: list[str] | None = None) -> int:
    """Compare two runs; returns 0 where they agree, 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("--rel", type=float, default=0.0, help="losses may differ by this share (default: not at all)")
    given = parser.parse_args(arguments)
    first, second = read_steps(given.a), read_steps(given.b)
    both = first.keys() & second.keys()
    if not both:
        raise TrainError(f"{given.a} and {given.b} have no step in common")
    faults = list(differences(first, second, given.rel))
    print(
        faults[0] + f" ({len(faults)} differences in all)" if faults else f"the same in all {len(both)} steps of both"
    )
    for name, steps, others in ((given.a, first, second), (given.b, second, first)):
        if alone := steps.keys() - others.keys():
            print(f"{name} alone has {len(alone)} steps, {min(alone)} to {max(alone)}")
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LmmsError as error:
        sys.exit(f"error: {error}")
