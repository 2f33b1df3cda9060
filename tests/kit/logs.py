"""Lines of metrics.jsonl for tests that need no run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmms.train.watch.metrics import StepLog, append_metrics

_LOG = StepLog(
    step=1,
    steps=10,
    loss=2.5,
    lr=1e-5,
    grad_norm=2.0,
    grad_norms={"llm": 1.5, "vision": None, "aligner": 0.0},
    tokens=12_000,
    target_tokens=6_000,
    prompt_tokens=2_000,
    visual_tokens=4_000,
    padding_tokens=600,
    seconds=0.125,
    tokens_per_s=96_000.0,
    target_tokens_per_s=48_000.0,
    prompt_tokens_per_s=16_000.0,
    visual_tokens_per_s=32_000.0,
    padding_tokens_per_s=4_800.0,
    flops=5e13,
    mfu=None,
    busy_mfu=None,
    data_wait=0.02,
    memory=3_000_000_000,
    epoch=1.25,
    position=10,
    digest="00000000deadbeef",
    masked=1,
    skipped=0,
    time=160.0,
    resumed_from=0,
)


def step_log(step: int, **changes: Any) -> StepLog:
    """The line of a step of a run of ten, one a minute."""
    return replace(_LOG, **{"step": step, "position": 10 * step, "time": 100.0 + 60 * step, **changes})


def write_metrics(folder: Path, logs: Sequence[StepLog]) -> Path:
    """An output folder with these lines in metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for log in logs:
        append_metrics(folder, log)
    return folder
