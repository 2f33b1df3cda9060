"""Random faults against real runs: no fault may lose, repeat or change a step.

A run is started, hit, and started again, on other ranks, workers and passes each time, until it is at its last step.
Its metrics then have to be those of an undisturbed run: the same packs in every step, each step once, the same losses
to 1e-5. Files that the run leaves in shared memory and in the temporary folder are counted too.
"""

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from lmms.cli.demo.draw import draw_pictures
from lmms.cli.demo.story import MODEL
from lmms.configs.settings.data import DataConfig
from lmms.configs.settings.memory import MemoryConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.configs.settings.train import ModelConfig, TrainConfig
from lmms.train.watch.metrics import METRICS_NAME
from tools.compare_runs import differences, read_steps
from tools.faults.hits import HITS, Running
from tools.faults.ranks import FAILED, FINISHED, STOPPED, kill_group, start_ranks, wait_for

STEPS, GLOBAL_PACKS, PICTURES, SEQ_LEN = 24, 4, 200, 512
STALL_S, HANG_S = 60.0, 8.0
"""The setting stall_s of a life, and of a life in which a rank is made to hang, which has to be waited for."""
PATIENCE_S = 120.0
"""Seconds within which every rank of a run has to end after a fault."""


@dataclass(slots=True)
class Findings:
    """The result of a campaign."""

    faults: Counter[str] = field(default_factory=Counter)
    """Kind -> hits."""
    runs: int = 0
    restarts: int = 0
    worlds: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """A sentence for each thing that went wrong."""
    seconds: float = 0.0


def prepare(folder: Path, seed: int) -> TrainConfig:
    """Write shards of small pictures; returns the settings of a run over them that crosses ends of epochs."""
    draw_pictures(folder, "train", PICTURES, seed)
    # In a process of its own: this one forks the ranks, and a fork after polars has started its threads hangs.
    command = [sys.executable, "-m", "lmms.cli", "prep", "build-shards", str(folder / "train.jsonl"), "--quiet"]
    options = ["--model", str(MODEL), "--seq-len", str(SEQ_LEN), "--out", str(folder / "shards"), "--workers", "1"]
    subprocess.run([*command, *options], check=True)
    return TrainConfig(
        model=ModelConfig(path=str(MODEL), init="random"),
        memory=MemoryConfig(recompute="none"),
        data=DataConfig(shards=str(folder / "shards"), global_packs=GLOBAL_PACKS, workers=0),
        # Gradients that are 0 but for rounding (of key biases) would become whole updates with a smaller eps.
        optim=OptimConfig(lr={"default": 1e-3}, eps=1e-3),
        output=str(folder / "undisturbed"),
        max_steps=STEPS,
        save_steps=5,
        save_total_limit=3,
        device="cpu",
    )


def campaign(
    folder: Path, seed: int, faults: int, minutes: float, say: Callable[[str], None], leftovers: Callable[[], set[str]]
) -> Findings:
    """Hit runs until so many faults or minutes are reached. leftovers: names of files that processes left behind."""
    began, findings, rng = time.monotonic(), Findings(), random.Random(seed)
    config = prepare(folder, seed)
    (pid,) = start_ranks(config, 1, folder / "undisturbed.log")
    if wait_for([pid], 600) != {pid: FINISHED}:
        raise SystemExit(f"the undisturbed run failed: {(folder / 'undisturbed.log').read_text()}")
    before = leftovers()
    while findings.faults.total() < faults and time.monotonic() - began < 60 * minutes:
        number, known = findings.runs, len(findings.wrong)
        _disturbed_run(replace(config, output=str(folder / f"run{number}")), rng, findings, folder / f"run{number}.log")
        findings.runs += 1
        findings.wrong += [
            f"run {number}: {fault}" for fault in compared(folder / "undisturbed", folder / f"run{number}")
        ]
        findings.wrong += [f"run {number} left {name}" for name in sorted(leftovers() - before)]
        before |= leftovers()
        findings.seconds = time.monotonic() - began
        say(
            f"{findings.faults.total()} faults in {findings.runs} runs,"
            f" {len(findings.wrong)} wrong, {findings.seconds:.0f} s"
        )
        for sentence in findings.wrong[known:]:
            say(sentence)
    return findings


def _disturbed_run(config: TrainConfig, rng: random.Random, findings: Findings, log: Path) -> None:
    """Train one run to its end, with a fault in each of its lives."""
    for life in range(100):
        world, kind = rng.choice((1, 1, 2, 4)), rng.choice(list(HITS))
        hangs = kind == "rank hangs"
        workers = rng.choice((1, 3)) if kind == "loader process" else 0 if hangs else rng.choice((0, 0, 0, 0, 1))
        data = replace(config.data, workers=workers, micro_packs=rng.choice((1, 1, 2, 3)))
        stall_s = HANG_S if hangs else STALL_S
        pids = start_ranks(replace(config, data=data, save_async=rng.random() < 0.7, stall_s=stall_s), world, log)
        findings.worlds[world] += 1
        running = Running(Path(config.output), tuple(pids), rng)
        codes, hit = HITS[kind](running)
        codes |= wait_for([pid for pid in pids if pid not in codes], PATIENCE_S)
        late = [pid for pid in pids if pid not in codes]
        kill_group(pids)
        wait_for(late, 10)
        if late:
            findings.wrong.append(
                f"{config.output}: {len(late)} of {world} ranks had not ended {PATIENCE_S:g} s after {kind}"
            )
        findings.faults[kind] += hit
        findings.restarts += life > 0
        if set(codes.values()) == {FINISHED}:
            return
        unexpected = set(codes.values()) - {FINISHED, STOPPED, FAILED, -signal.SIGKILL, 70}
        if unexpected or (not hit and FINISHED not in codes.values()):
            findings.wrong.append(
                f"{config.output}: ranks ended with {sorted(codes.values())} around {kind}; see {log}"
            )
            return
    findings.wrong.append(f"{config.output} did not come to its end in 100 lives")


def compared(undisturbed: Path, run: Path) -> list[str]:
    """The differences between the logs of two runs to the last step."""
    steps = [json.loads(line)["step"] for line in (run / METRICS_NAME).read_text().splitlines()]
    if steps != list(range(1, STEPS + 1)):
        return [f"its steps are {steps}"]
    return list(differences(read_steps(undisturbed), read_steps(run), rel=1e-5))
