"""The time from the start of a run to its first batch, in a new process each time.

    python -m tools.bench.first_batch SHARDS POSITION

prints a line of JSON.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from lmms.train.batch.loader import batches
from lmms.train.data.sets import open_sets
from lmms.train.data.shards import PackReader
from lmms.train.data.steps import Progress, plan_steps
from tools.bench.reading import open_run

GLOBAL_PACKS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstBatch:
    """The time and memory of one process, from the end of its imports to its first batch."""

    position: int
    """Packs that were trained before."""
    pack: int
    """The pack that was read, checked and made into a batch."""
    seconds: float
    opening_s: float
    """The seconds for the manifest, the index and the table of packs."""
    cpu_s: float
    """Seconds of processor time, which other work on the machine hardly changes."""
    peak_bytes: int
    imported_bytes: int
    """The bytes after the imports."""


def first_batches(shards: Path, positions: Sequence[int], rounds: int) -> list[list[FirstBatch]]:
    """The measurements of each position, in so many processes; the positions take turns."""
    measured: list[list[FirstBatch]] = [[] for _ in positions]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for _ in range(rounds):
        for position, of_position in zip(positions, measured, strict=True):
            command = [sys.executable, "-m", "tools.bench.first_batch", str(shards), str(position)]
            line = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            of_position.append(FirstBatch(**json.loads(line)))
    return measured


def first_batch(shards: Path, position: int) -> FirstBatch:
    """Do what `lmms train` does with a data set until its first batch after this position, and measure it."""
    imported = _peak_bytes()
    start, cpu_start = time.perf_counter(), time.process_time()
    sets = open_sets([shards])
    opening_s = time.perf_counter() - start
    opened = open_run(sets, GLOBAL_PACKS)
    plan = next(plan_steps(opened.order, sets, done=Progress(0, position)))
    with closing(batches(PackReader(sets.datasets), opened.recipe, plan.passes, 0, 60.0)) as made:
        next(made)
    return FirstBatch(
        position=position,
        pack=plan.passes[0].places[0].pack,
        seconds=time.perf_counter() - start,
        opening_s=opening_s,
        cpu_s=time.process_time() - cpu_start,
        peak_bytes=_peak_bytes(),
        imported_bytes=imported,
    )


def _peak_bytes() -> int:
    """Resident bytes at the peak so far (Linux)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(asdict(first_batch(Path(sys.argv[1]), int(sys.argv[2])))))
