"""Whether the order costs anything: the loss of a small run in the order of lmms, in groups, and in random order.

    python tools/bench/order_loss.py [--steps 160] [--seeds 3]

The data are two sets of questions with different skills and costs, in one folder of shards: the demo's pictures, and
sums in text. Random order is the order of lmms with equal costs: a hash alone then decides the places. Packs are those
of both plans. Prints the mean loss of the last quarter of the steps and of an evaluation on held-out records, for each
order and seed.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Literal
from unittest import mock

import numpy as np
import torch

from lmms.cli.demo.draw import draw_pictures
from lmms.cli.demo.story import MODEL
from lmms.configs.settings.data import DataConfig, EvalConfig
from lmms.configs.settings.memory import MemoryConfig
from lmms.configs.settings.optim import OptimConfig
from lmms.configs.settings.prep import PrepConfig
from lmms.configs.settings.train import ModelConfig, TrainConfig
from lmms.prep.build import build_shards
from lmms.train.data import sets
from lmms.train.run import train
from lmms.train.watch.metrics import METRICS_NAME

Plan = Literal["balanced", "tight"]

GLOBAL_PACKS, SEQ_LEN = 8, 256
ORDERS: Mapping[str, tuple[Plan, int | None]] = {
    "tight plan, random": ("tight", None),
    "tight plan, ours": ("tight", 1),
    "tight plan, ours, groups of 8": ("tight", GLOBAL_PACKS),
    "balanced plan, random": ("balanced", None),
    "balanced plan, ours": ("balanced", 1),
}
"""Name -> plan of the packs and group_packs; None for random order."""


def main() -> None:
    """Train every order with every seed and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="lmms-order-") as made:
        folder = Path(made)
        for name, number in (("train", 1200), ("held out", 100)):
            _draw(folder, name, number)
        _build(folder, "train", "tight")
        _build(folder, "train", "balanced")
        _build(folder, "held out", "tight")
        print("| order | loss, last quarter | held out |\n|---|---|---|")
        for name, (plan, group) in ORDERS.items():
            losses = [_losses(folder, name, plan, group, seed, given.steps) for seed in range(given.seeds)]
            trained, held_out = (" ".join(f"{loss:.3f}" for loss in column) for column in zip(*losses, strict=True))
            print(f"| {name} | {trained} | {held_out} |", flush=True)


def _draw(folder: Path, name: str, number: int) -> None:
    draw_pictures(folder, name, number, 0)
    rng = random.Random(name)
    with (folder / f"{name} sums.jsonl").open("w") as file:
        for _ in range(number):
            a, b = rng.randrange(50), rng.randrange(50)
            turns = [{"role": "user", "content": f"{a} + {b}?"}, {"role": "assistant", "content": str(a + b)}]
            file.write(json.dumps({"messages": turns}) + "\n")


def _build(folder: Path, name: str, plan: Plan) -> None:
    sources = (str(folder / f"{name}.jsonl"), str(folder / f"{name} sums.jsonl"))
    build_shards(
        PrepConfig(
            sources=sources, model=str(MODEL), seq_len=SEQ_LEN, out=str(folder / f"{name} {plan}"), plan=plan, workers=0
        )
    )


def _losses(folder: Path, name: str, plan: Plan, group: int | None, seed: int, steps: int) -> tuple[float, float]:
    """(mean loss of the last quarter, loss on held-out records)."""
    output = folder / f"{name} {seed}"
    config = TrainConfig(
        model=ModelConfig(path=str(MODEL), init="random"),
        memory=MemoryConfig(recompute="none"),
        data=DataConfig(
            shards=str(folder / f"train {plan}"), global_packs=GLOBAL_PACKS, group_packs=group or 1, workers=0
        ),
        eval=EvalConfig(shards=str(folder / "held out tight"), every_steps=steps),
        optim=OptimConfig(lr={"default": 3e-3}, warmup_steps=20, weight_decay=0.01),
        output=str(output),
        max_steps=steps,
        seed=seed,
        device="cpu",
    )
    with _equal_costs() if group is None else nullcontext():
        train(replace(config, save_steps=steps), lambda event: None)
    lines = [json.loads(line) for line in (output / METRICS_NAME).read_text().splitlines()]
    return mean(line["loss"] for line in lines[-steps // 4 :]), lines[-1]["eval_loss"]


@contextmanager
def _equal_costs() -> Iterator[None]:
    with mock.patch.object(sets, "table_costs", lambda cost, sidecar: np.ones((2, len(sidecar)), np.int64)):
        yield


if __name__ == "__main__":
    main()
