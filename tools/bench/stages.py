"""CPU time of each stage of a build in one process, and of tasks on a Ray cluster: the rates of docs/engine.md.

    uv run python -m tools.bench.stages MODEL SOURCE ... [--media-root DIR] [--repeat 20] [--tasks 1000]

A line of JSON for each source: what a build takes beyond a build of one record. making: records to samples in the
spool; writing: samples to shards; closing: tables and manifest. --repeat: how often the source is read, each time with
a number before the last answer, so that no record equals another. --tasks: measure so many tasks of a Ray cluster of
this machine alone too, of 1 kB each, and tasks of batches of chunks of 2 MB.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmms.configs.settings.prep import PrepConfig
from lmms.prep.build import build_shards
from lmms.prep.chunks import chunk_values, read_chunks
from lmms.prep.engine.cluster import Call, groups_on_ray, ray_cluster, tasks_on_ray
from lmms.prep.engine.processes import same_task
from lmms.prep.progress import Progress
from lmms.prep.sources import find_sources

_STAGES = {"reading": "making", "writing": "writing"}
_CHUNK_BYTES = 2_000_000


def stages(model: str, source: str, media_root: str | None, repeat: int) -> dict[str, Any]:
    """CPU-seconds by stage of a build, beyond what a build of one record takes; with what was built."""
    records = list(_records(source, repeat))
    root = media_root or str(Path(source).parent)
    _build(model, records[:1], root)  # the libraries are loaded
    fixed = _build(model, records[:1], root)["cpu_s"]
    built = _build(model, records, root)
    cpu = {stage: round(seconds - fixed[stage], 2) for stage, seconds in built["cpu_s"].items()}
    return {"source": Path(source).name, **built, "cpu_s": cpu, "of_one_record_s": round(sum(fixed.values()), 2)}


def _build(model: str, records: list[dict[str, Any]], media_root: str) -> dict[str, Any]:
    spans: dict[str, list[float]] = {}

    def note(progress: Progress) -> None:
        now = time.process_time()
        spans.setdefault(_STAGES[progress.stage], [now, now])[1] = now

    with TemporaryDirectory() as folder:
        config = PrepConfig(
            sources=(),
            model=model,
            seq_len=16_384,
            out=f"{folder}/out",
            media_root=media_root,
            workers=0,
            max_rejects=1.0,
            store="none",
        )
        counts = build_shards(config, note, records).counts
        size = sum(file.stat().st_size for file in Path(folder, "out").iterdir())
    cpu = {stage: last - first for stage, (first, last) in spans.items()}
    cpu["closing"] = time.process_time() - spans["writing"][1]
    return {name: counts[name] for name in ("packed", "tokens", "media")} | {"bytes": size, "cpu_s": cpu}


def _records(source: str, repeat: int) -> Iterator[dict[str, Any]]:
    sources, _ = find_sources([source], None)
    values = [value for chunk in read_chunks(sources) for _, value in chunk_values(chunk, sources[0].columns)]
    for number in range(repeat):
        for value in values:
            *before, last = value["messages"]
            yield {**value, "messages": [*before, {**last, "content": f"{number} {last['content']}"}]}


def tasks(number: int) -> dict[str, float]:
    """Milliseconds of this process for a task: of 1 kB, and of a batch of chunks."""
    call = Call(_length, _nothing, ())
    with ray_cluster():
        list(tasks_on_ray(call, enumerate([b""] * 20), str))  # the workers are there
        cpu = [time.process_time()]
        list(tasks_on_ray(call, ((i, bytes(1000)) for i in range(number)), str))
        cpu.append(time.process_time())
        chunks = len(list(groups_on_ray(call, _chunks, [number // 20] * 2, iter(()), str, lambda: same_task)))
        cpu.append(time.process_time())
    return {"task_ms": (cpu[1] - cpu[0]) / number * 1e3, "chunk_ms": (cpu[2] - cpu[1]) / chunks * 1e3}


def _length(task: tuple[int, bytes]) -> int:
    return len(task[1])


def _nothing() -> None:
    """Workers need nothing."""


def _chunks(number: int) -> Iterator[bytes]:
    for _ in range(number):
        yield bytes(_CHUNK_BYTES)


def main() -> None:
    """Print a line for each source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--media-root")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=0)
    given = parser.parse_args()
    for source in given.sources:
        print(json.dumps(stages(given.model, source, given.media_root, given.repeat)), flush=True)
    if given.tasks:
        print(json.dumps(tasks(given.tasks)))


if __name__ == "__main__":
    main()
