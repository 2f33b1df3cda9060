"""CPU time of a build beside that of the tokenizer alone, for sets of records: a Markdown table.

    uv run python -m tools.bench.prep MODEL SOURCE ... [--workers 1,2] [--repeat 3] [--peers PYTHON]

floor: `tokenizers.encode_batch_fast` alone, on one core, over the text that the chat template renders. build: from the
records to a finished shard folder that was checked pack by pack, all processes together, without the second or two
that a build of one record takes (tokenizer, template, libraries), which the table has apart. peers: with --peers, the
programs of tools/bench/peers/prep.py under that Python, counted in the same way. Each figure is the least of some
rounds, in turn. Figures are in docs/figures.md.
"""

import argparse
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lmms.configs.contract.model_folder import read_model_folder
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.sources import SourceConfig
from lmms.prep.build import build_shards
from lmms.prep.first_records import read_records
from lmms.prep.records.record import Record
from lmms.prep.reject import Reject
from lmms.prep.render.layout import lay_out_by_template
from lmms.prep.render.renderer import load_renderer
from tools.bench.peers.prep import PEERS

_SEQ_LEN = 16_384


@dataclass(frozen=True, slots=True)
class Used:
    """What a command used."""

    cpu_s: float
    """Seconds of the process and its children."""
    wall_s: float


def used_by(code: str, *arguments: str, python: str = sys.executable, cache: str = "") -> Used | None:
    """What a Python program used; None where it ended with an error. cache: folder of the package datasets."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_DATASETS_CACHE": cache} if cache else {}
    command = [python, "-c", code, *arguments]
    ended = subprocess.run(command, env=environment, capture_output=True, check=False)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return None if ended.returncode else Used(cpu, wall)


def build(model: str, source: str, workers: str, limit: str) -> None:
    """One build, in a process of its own."""
    with TemporaryDirectory() as folder:
        config = PrepConfig(
            sources=(SourceConfig(path=source, max_records=int(limit) or None),),
            model=model,
            seq_len=_SEQ_LEN,
            out=f"{folder}/shards",
            workers=int(workers),
            max_rejects=1.0,
        )
        build_shards(config)


def floor(model: str, source: str) -> tuple[float, int, int]:
    """(CPU seconds of the tokenizer alone, tokens, records)."""
    renderer = load_renderer(read_model_folder(Path(model)))
    texts = []
    for _, _, record in read_records([source]):
        if isinstance(record, Record):
            try:
                texts.append("".join(lay_out_by_template(renderer, record).pieces))
            except Reject:
                continue
    start = time.process_time()
    encoded = renderer.encoder.exact.encode_batch_fast(texts, add_special_tokens=False)
    return time.process_time() - start, sum(len(each.ids) for each in encoded), len(texts)


def row(model: str, source: str, workers: Sequence[int], repeat: int, peers: str | None) -> str:
    """A line of the table."""
    program = "import sys; from tools.bench.prep import build; build(*sys.argv[1:])"
    least, tokens, records = min(floor(model, source) for _ in range(repeat))
    cells = [Path(source).name, f"{records:,}", f"{tokens:,}", f"{least:.2f}"]
    for number in workers:
        builds, fixed = [], []
        for _ in range(repeat):
            builds.append(used_by(program, model, source, str(number), "0"))
            fixed.append(used_by(program, model, source, str(number), "1"))
        cells += _cells(_least(builds), _least(fixed), least)
    if peers:
        cells += [f"{seconds / least:.2f}" for seconds in _peer_seconds(model, source, peers)]
    return f"| {' | '.join(cells)} |"


def _peer_seconds(model: str, source: str, python: str) -> Iterator[float]:
    """CPU seconds of each peer beyond those for one record; NaN where it fails on these records."""
    with TemporaryDirectory() as folder:
        first = Path(folder, "first.jsonl")
        with Path(source).open("rb") as lines:
            first.write_bytes(lines.readline())
        for name, program in PEERS.items():
            used = [
                used_by(
                    program, model, str(file), f"{folder}/{name}{i}", python=python, cache=f"{folder}/cache{name}{i}"
                )
                for i, file in enumerate((source, first))
            ]
            yield used[0].cpu_s - used[1].cpu_s if used[0] and used[1] else math.nan


def _least(used: Sequence[Used | None]) -> Used:
    return min((each for each in used if each), key=lambda each: each.cpu_s)


def _cells(built: Used, fixed: Used, least: float) -> list[str]:
    return [
        f"{built.cpu_s:.2f}",
        f"{fixed.cpu_s:.2f}",
        f"{(built.cpu_s - fixed.cpu_s) / least:.3f}",
        f"{built.wall_s:.1f}",
    ]


def main() -> None:
    """Print the table."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--workers", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--peers", metavar="PYTHON", help="the Python of an environment with datasets and trl")
    given = parser.parse_args()
    head = ["set", "records", "tokens", "floor, s"]
    for number in given.workers:
        head += [f"build with {number}, s", "of one record, s", "ratio", "time, s"]
    head += [f"{name}, ratio" for name in PEERS] if given.peers else []
    print(f"| {' | '.join(head)} |\n|---|{'--:|' * (len(head) - 1)}", flush=True)
    for source in given.sources:
        print(row(given.model, source, given.workers, given.repeat, given.peers), flush=True)


if __name__ == "__main__":
    main()
