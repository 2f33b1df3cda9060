"""Checkpoints of a few numbers, for the tests of what writes, keeps and reads them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lmms.train.checkpoint.files import COMPLETE_NAME, describe_files
from lmms.train.checkpoint.keep import Keep
from lmms.train.checkpoint.read import load_checkpoint
from lmms.train.checkpoint.state import Base, Best, Measure, TrainerState
from lmms.train.checkpoint.write import saving
from lmms.train.data.phases import RunPhase, SetShare
from lmms.train.parallel.world import World
from tests.kit.phases import first_phase

LOSS = Measure(metric="loss", greater=False, shards="", loss_weight="token")


def phase(**turns: int) -> RunPhase:
    """A phase over sets of these index hashes, each with its turns."""
    sets = [SetShare(shards=f"/{index}", index=index, turns=count, cursor=0) for index, count in turns.items()]
    return first_phase(sets, global_packs=8, group_packs=2, seed=1, pass_packs=10.0, pack_tokens=100.0)


STATE = TrainerState(
    step=0,
    position=0,
    seed=1,
    order="v1",
    shards=("ab", "cd"),
    group_packs=2,
    costs="c1",
    fingerprints={"tokenizer": "t1", "template": "u1", "vision": "v1", "packing": "p1"},
    phases=(phase(ab=3, cd=5),),
    global_packs=8,
    model="/model",
    base=Base(path="/model", digest="d1"),
    zero_steps={"llm": 3},
    skipped=0,
    best=None,
    config={"max_steps": 5, "train": {"vision": "frozen"}, "optim": {"betas": (0.9, 0.95)}},
)


def silent(event: object) -> None:
    """A report that nobody reads."""


def state_at(step: int, **changes: Any) -> TrainerState:
    return replace(STATE, step=step, position=8 * step, **changes)


def numbers(value: float) -> dict[str, torch.Tensor]:
    return {"model.a": torch.full((2, 3), value), "optimizer.a.step": torch.tensor(value)}


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The numbers that a checkpoint holds."""
    found = numbers(0)
    load_checkpoint(checkpoint, found, alone=True)
    return found


def save(output: Path, world: World, *steps: int, keep: Keep | None = None, best: int | None = None) -> list[str]:
    """Save these steps, one after the other, the given one as the best; returns what is there in the end."""
    found = None if best is None else Best(step=best, value=0.5, measure=LOSS)
    with saving(output, world, keep or Keep(), 0, asynchronous=True, grace_s=1, report=silent) as saver:
        for step in steps:
            saver.save(state_at(step, best=found if best is not None and step >= best else None), numbers(step))
    return sorted(path.name for path in output.iterdir())


def mark_complete(checkpoint: Path) -> None:
    """Write complete.json anew, for files that were changed."""
    names = [path.name for path in checkpoint.iterdir() if path.name != COMPLETE_NAME]
    (checkpoint / COMPLETE_NAME).write_text(json.dumps(describe_files(checkpoint, names)))


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
