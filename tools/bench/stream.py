"""The cost of reading: packs next to a plain read and mosaicml-streaming, the first batch of a run, the wait in a run.

    python -m tools.bench.stream SHARDS... [--run CONFIG] [--out FILE]

Each SHARDS is a folder on this machine that fits into its memory, for example a folder of text and a folder with
images. The first batch is that of a data set made for this (write_many_packs), at its start and in its middle. CONFIG
is a run file of `lmms train`. Needs the development dependencies, and takes minutes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmms.train.watch.metrics import METRICS_NAME
from tools.bench.first_batch import GLOBAL_PACKS, FirstBatch, first_batches
from tools.bench.many_packs import write_many_packs
from tools.bench.reading import Speed, speeds


def first_batch_of_many(folder: Path, like: Path, packs: int, shards: int, rounds: int) -> dict[str, Any]:
    """The first batch of so many packs, at the start and in the middle; every measurement and the ratios of medians."""
    write_many_packs(folder, like, packs, shards)
    middle = packs // 2 // GLOBAL_PACKS * GLOBAL_PACKS
    fresh, resumed = first_batches(folder, (0, middle), rounds)
    return {
        "packs": packs,
        "shards": shards,
        "fresh": [asdict(batch) for batch in fresh],
        "resumed": [asdict(batch) for batch in resumed],
        "seconds_ratio": _median(resumed, "seconds") / _median(fresh, "seconds"),
        "cpu_ratio": _median(resumed, "cpu_s") / _median(fresh, "cpu_s"),
    }


def data_wait(config: Path, output: Path, steps: int) -> dict[str, float]:
    """Figures of a run of so many steps, with the share of time in which it waited for data, without the first step."""
    command = [sys.executable, "-m", "lmms.cli", "train", "--config", str(config), "--resume", "never"]
    subprocess.run([*command, f"max_steps={steps}", f"output={output}"], check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (output / METRICS_NAME).read_text(encoding="utf-8").splitlines()]
    seconds = [line["tokens"] / line["tokens_per_s"] for line in lines]
    waits = [line["data_wait"] * taken for line, taken in zip(lines, seconds, strict=True)]
    return {
        "steps": len(lines),
        "step_s": statistics.mean(seconds[1:]),
        "data_wait": sum(waits[1:]) / sum(seconds[1:]),
        "first_wait_s": waits[0],
    }


def speed_lines(shards: str, measured: Sequence[Speed]) -> list[str]:
    """A table of the ways to read one data set."""
    lines = [
        f"{shards}: medians; share: of the plain read's speed, by round and by the best of each",
        f"  {'':36}{'packs/s':>11}{'tokens/s':>15}{'share':>10}{'best':>10}",
    ]
    for speed in measured:
        rates = f"{speed.packs_per_s:>11,.1f}{speed.tokens_per_s:>15,.0f}"
        lines.append(f"  {speed.way:36}{rates}{speed.share:>10.2%}{speed.best_share:>10.2%}")
    return lines


def first_batch_lines(figures: dict[str, Any]) -> list[str]:
    """Lines on both starts, and on their ratio."""
    lines = [
        f"the first batch of {figures['packs']:,} packs in {figures['shards']:,} shards: medians",
        f"  {'':22}{'seconds':>9}{'opening':>9}{'CPU':>9}{'peak GB':>9}{'modules':>9}",
    ]
    for name in ("fresh", "resumed"):
        each = [FirstBatch(**batch) for batch in figures[name]]
        times = [_median(each, column) for column in ("seconds", "opening_s", "cpu_s")]
        memory = [_median(each, column) / 1e9 for column in ("peak_bytes", "imported_bytes")]
        place = f"{name} at {each[0].position:,}"
        lines.append(f"  {place:22}" + "".join(f"{value:>9.2f}" for value in times + memory))
    return [*lines, f"  resumed over fresh    {figures['seconds_ratio']:>9.3f}{'':9}{figures['cpu_ratio']:>9.3f}"]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="+")
    parser.add_argument("--run", type=Path, metavar="CONFIG", help="measure the wait for data in a run of this file")
    parser.add_argument("--steps", type=int, default=30, help="of that run")
    parser.add_argument("--packs", type=int, default=10_000_000, help="of the data set for the first batch")
    parser.add_argument("--num-shards", type=int, default=10_000, help="of that data set")
    parser.add_argument("--rounds", type=int, default=5, help="of starts")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each way to read")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1, 2], help="loader processes")
    parser.add_argument("--out", type=Path, help="write what was measured here, as JSON")
    given = parser.parse_args(arguments)
    measured: dict[str, Any] = {"reading": {}}
    with tempfile.TemporaryDirectory(prefix="lmms-bench-", ignore_cleanup_errors=True) as made:
        # StreamingDataset leaves files in the temporary folder.
        tempfile.tempdir = os.environ["TMPDIR"] = made
        for shards in given.shards:
            ways = speeds(shards, given.seconds, given.workers)
            measured["reading"][str(shards)] = [asdict(way) for way in ways]
            print("\n".join(speed_lines(str(shards), ways)), flush=True)
        start = first_batch_of_many(Path(made) / "many", given.shards[0], given.packs, given.num_shards, given.rounds)
        measured["first_batch"] = start
        print("\n".join(first_batch_lines(start)), flush=True)
        if given.run:
            measured["run"] = run = data_wait(given.run, Path(made) / "run", given.steps)
            steps = f"a run of {run['steps']} steps of {run['step_s']:.2f} s"
            print(f"{steps}: {run['data_wait']:.2%} of it waiting for data; {run['first_wait_s']:.2f} s for the first")
    if given.out:
        given.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


def _median(measured: Sequence[FirstBatch], name: str) -> float:
    return float(statistics.median(getattr(batch, name) for batch in measured))


if __name__ == "__main__":
    main()
