"""The time from nothing to the first batch of a run, in a process of its own each time.

    python -m tools.bench.first_batch SHARDS MODEL POSITION

prints one JSON line: seconds after the imports, by part, and memory.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from lmms.train.loader import batches
from lmms.train.passes import plan_steps
from lmms.train.stream import PackReader
from tools.bench.reading import open_run

_GLOBAL_PACKS = 256


def first_batch(shards: Path, model: str | None, position: int) -> dict[str, float]:
    """Open everything, find the step after `position` trained packs, and read its first pass."""
    imported = _peak_bytes()
    start = time.perf_counter()
    opened = open_run(shards, model, _GLOBAL_PACKS)
    ready = time.perf_counter()
    plan = next(plan_steps(opened.order, opened.sets, 0, 1, 1, 0, position, look_ahead=False))
    with closing(batches(PackReader(opened.sets.datasets), opened.recipe, plan.passes, 0, 60.0)) as made:
        batch = next(made)
    end = time.perf_counter()
    return {
        "seconds": end - start,
        "opening_s": ready - start,
        "tokens": batch.input_ids.shape[1],
        "pack": plan.passes[0].places[0].pack,
        "peak_bytes": _peak_bytes(),
        "imported_bytes": imported,
    }
